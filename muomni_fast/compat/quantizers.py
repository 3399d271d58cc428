"""What all families of residual vector quantizers share."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..functional import rvq_encode, search_table
from ..reference.errors import CheckpointError
from ..reference.values import MOST_CHANNELS, require_int
from .adapter import Adapter, hooked

# Codes of a codebook that theirs searches sooner than ours has checked its weights: four codebooks
# of 64 x 32, 250 frames, took 1.9 ms, theirs 1.5 (one thread; 256 codes 2.3 and 2.7).
FEW_CODES = 64
CODEWORDS = r"codebooks\.\d+\.weight"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What encoding needs.

    Attributes:
        books: the codebooks: (K, D) each, or, on a GPU, whose kernel reads them so, all in one.
        table: (Q, 2, K, W), what is searched; None of float64, or where a codeword is not finite.
    """

    books: list[Tensor] | Tensor
    table: Tensor | None


class QuantizerAdapter(Adapter):
    """Runs a quantizer whose codebooks are searched by Euclidean distance.

    What is prepared is the table that is searched, twice as large as the codebooks.
    """

    methods = ("encode", "decode")
    layers: ClassVar[str] = "layers"  # their name of what has a `codebook` each
    kept: ClassVar[tuple[str, ...]] = ("embed",)  # of a codebook: what its codewords are made of
    statistics: ClassVar[tuple[str, ...]] = ()  # of a codebook: what training alone needs
    projections: ClassVar[tuple[str, ...]] = ()  # their names of `proj_in` and `proj_out`

    @classmethod
    def codewords(cls, codebook: Any) -> Tensor:
        """(K, D), of what has the attributes that are `kept`."""
        return codebook.embed

    @classmethod
    def books(cls, module: Any) -> list[Tensor]:
        """The codebooks, (K, D) each.

        Raises:
            AttributeError: there are none of this structure.
        """
        return [cls.codewords(layer.codebook) for layer in getattr(module, cls.layers)]

    @classmethod
    def sizes(cls, config: dict[str, Any], prefix: str) -> dict[str, Any]:
        """What a config says of the arguments of `RVQ`; what it leaves open, the weights say.

        Args:
            config: as JSON, by whoever wrote it.
            prefix: what the quantizer's keys begin with in the whole model.

        Raises:
            TypeError, ValueError: an entry is none that fits; names it.
        """
        raise NotImplementedError

    @classmethod
    def misfit(cls, module: Any) -> str:
        try:
            books = cls.books(module)
        except AttributeError as error:
            return f"its modules are not as known: {error}"
        if not books:
            return "it has no codebooks"
        shapes = {tuple(book.shape) for book in books}
        if len(shapes) > 1 or books[0].ndim != 2:
            return f"expected codebooks of one shape (K, D), got {sorted(shapes)}"
        return hooked(module)

    @classmethod
    def slower(cls, module: Any) -> str:
        book = cls.books(module)[0]
        if book.device.type != "cpu" or len(book) > FEW_CODES:
            return ""
        return (
            f"codebooks of at most {FEW_CODES} codes were measured to be slower on a CPU, below "
            "thousands of frames (slower=True swaps it all the same)"
        )

    def _prepare(self) -> Prepared:
        books = self.books(self.module)
        stacked = torch.stack(books)
        single = stacked.dtype != torch.float64 and bool(stacked.isfinite().all())
        table = search_table(stacked.float(), mark_repeats=True) if single else None
        return Prepared(stacked if stacked.is_cuda else books, table)

    def codes(self, z: Tensor, n_codebooks: int | None = None) -> Tensor:
        """(..., D) frames -> (..., Q) int64: the nearest codewords in real arithmetic.

        Args:
            z: what the first codebook encodes; any float dtype.
            n_codebooks: how many of the first codebooks; None is all.
        """
        ready = self.ready()
        if ready is None:
            return rvq_encode(z, self.books(self.module)[:n_codebooks])
        books, table = ready.books[:n_codebooks], ready.table
        if table is not None:
            table = None if z.dtype == torch.float64 else table[: len(books)]
        return rvq_encode(z, books, table=table)

    def takes(self, z: Any, ndims: Sequence[int] = (3,)) -> bool:
        """Whether an input runs here; otherwise the module's own code takes it."""
        if self.stands_back() or not isinstance(z, Tensor):
            return False
        return z.ndim in ndims and z.numel() > 0 and self.usable()


def stated(config: dict[str, Any], **names: str) -> dict[str, int]:
    """The sizes that a config states.

    Args:
        config: as JSON; an entry that is null states nothing.
        names: the entry of each size, by our name of it.

    Raises:
        TypeError, ValueError: an entry is no size; names it.
    """
    return {
        ours: require_int(entry, config[entry], 1, MOST_CHANNELS)
        for ours, entry in names.items()
        if config.get(entry) is not None
    }


def sizes_of_weights(path: Path, state: dict[str, Tensor]) -> dict[str, Any]:
    """Arguments of `RVQ` for weights under its names, which say all of them.

    Raises:
        CheckpointError: a weight that says one has not two dimensions.
    """
    first, projection = state["codebooks.0.weight"], state.get("proj_in.weight")
    for name, value in (("codebooks.0.weight", first), ("proj_in.weight", projection)):
        if value is not None and value.ndim != 2:
            got = tuple(value.shape)
            raise CheckpointError(f"{path}: {name}: expected two dimensions, got {got}")
    return {
        "n_codebooks": sum(re.fullmatch(CODEWORDS, name) is not None for name in state),
        "codebook_size": first.shape[0],
        "codebook_dim": first.shape[1],
        "n_mels": first.shape[1] if projection is None else projection.shape[-1],
        "projections": projection is not None,
        "bias": "proj_in.bias" in state,
    }


def sum_of_codewords(codes: Sequence[Tensor] | Tensor, books: Sequence[Tensor] | Tensor) -> Tensor:
    """(Q, ...) codes and Q codebooks (K, D) -> the sums of their codewords, (..., D).

    On a CPU this was measured to be faster than gathering from codebooks in one tensor, and than
    what the families do, which transpose every codebook's part.
    """
    total = F.embedding(codes[0], books[0])
    for own, book in zip(codes[1:], books[1:], strict=False):
        total = total + F.embedding(own, book)
    return total
