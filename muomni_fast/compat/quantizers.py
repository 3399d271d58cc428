"""What all families of residual vector quantizers share."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..functional import rvq_encode, search_table
from .adapter import Adapter, hooked

# Codes of a codebook that theirs searches sooner than ours has checked its weights: four codebooks
# of 64 x 32, 250 frames, took 1.9 ms, theirs 1.5 (one thread; 256 codes 2.3 and 2.7).
FEW_CODES = 64


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What encoding needs.

    Attributes:
        books: the codebooks: (K, D) each, or, on a GPU, whose kernel reads them so, all in one.
        table: (Q, K, W), what is searched; None of float64, or where a codeword is not finite.
    """

    books: list[Tensor] | Tensor
    table: Tensor | None


class QuantizerAdapter(Adapter):
    """Runs a quantizer whose codebooks are searched by Euclidean distance.

    What is prepared is the table that is searched, as large as the codebooks.
    """

    methods = ("encode", "decode")

    @classmethod
    def books(cls, module: Any) -> list[Tensor]:
        """The codebooks, (K, D) each.

        Raises:
            AttributeError: there are none of this structure.
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


def sum_of_codewords(codes: Sequence[Tensor] | Tensor, books: Sequence[Tensor] | Tensor) -> Tensor:
    """(Q, ...) codes and Q codebooks (K, D) -> the sums of their codewords, (..., D).

    On a CPU this was measured to be faster than gathering from codebooks in one tensor, and than
    what the families do, which transpose every codebook's part.
    """
    total = F.embedding(codes[0], books[0])
    for own, book in zip(codes[1:], books[1:], strict=False):
        total = total + F.embedding(own, book)
    return total
