"""The quantizer as a drop-in module: the reference's constructor and state dict."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import reference
from ..counters import begin_counting
from ..kernels.rvq.table import search_table
from ..preparable import Preparable
from ..reference import RVQOutput
from ..reference.rvq.beam import MOST_BEAM
from ..reference.values import require_int
from . import functional


@dataclasses.dataclass
class PreparedRVQ:
    """What inference needs of a quantizer's weights, computed once.

    Attributes:
        codebooks: (Q, K, D), all in one tensor.
        search_table: (Q, 2, K, W), what `kernels.rvq.table.search_table` gives.
        tables: (Q, K, n_mels), the codewords already projected back, the first codebook's
            with the bias.
    """

    codebooks: Tensor
    search_table: Tensor
    tables: Tensor


class RVQ(Preparable, reference.RVQ):
    __doc__ = reference.RVQ.__doc__

    code_sums = staticmethod(functional.code_sums)
    nearest_code = staticmethod(functional.nearest_code)
    _prepared: PreparedRVQ | None = None

    @torch.no_grad()
    def prepare(self) -> Self:
        """Compute once what encoding and decoding derive from the weights: stacked codebooks, what
        is searched of them, and codewords already projected back, so that decoding only gathers and
        adds.

        Decoded frames then differ by rounding (the projection is applied before the sum).
        `train()`, `load_state_dict()` and `to()` drop what was prepared; where weights have changed
        otherwise, it is not used. Only writes into memory through `.data`, or to weights made in
        inference mode, are not noticed. No gradient passes a prepared `decode`.

        Raises:
            RuntimeError: the module is in training mode.
            ValueError: a weight is not finite.
        """
        self._require_preparable()
        codebooks = self.stacked_codebooks()
        tables = codebooks.double()
        if self.proj_out is not None:
            tables = F.linear(tables, self.proj_out.weight.double())
            if self.proj_out.bias is not None:
                tables[0] += self.proj_out.bias.double()  # the first codebook is always decoded
        tables = tables.to(codebooks.dtype)
        if not tables.isfinite().all():
            raise ValueError("prepare: the codebooks or proj_out are not finite")
        table = search_table(codebooks.float(), mark_repeats=True)
        return self._keep(PreparedRVQ(codebooks, table, tables))

    def encode(
        self,
        mel: Tensor,
        precision: str = "exact",
        check_finite: bool = False,
        n_codebooks: int | None = None,
        beam: int = 1,
    ) -> Tensor:
        """Codes of mel frames: (..., n_mels) -> (..., n_codebooks) int64; see
        `functional.rvq_encode`.

        Args:
            mel, precision, check_finite: as there.
            n_codebooks: stop after so many; None is all. What is left out changes no code before,
                unless there is a beam.
            beam: paths through the codebooks to keep, 1 to 1024. With more than one the error is at
                most greedy's, and mostly less; codes then are not certified, and found by torch's
                own operators whatever the backend.
        """
        if type(beam) is not int or beam != 1:
            beam = require_int("beam", beam, 1, MOST_BEAM)
        ready = None if self._prepared is None else self._current()
        books: Any = None if ready is None else ready.codebooks
        if books is None:
            books = [codebook.weight for codebook in self.codebooks]
        table = None if ready is None else ready.search_table
        if n_codebooks is not None:
            require_int("n_codebooks", n_codebooks, 1, self.n_codebooks)
            books, table = books[:n_codebooks], table if table is None else table[:n_codebooks]
        layer = self.proj_in
        codes = functional.rvq_encode(
            mel,
            books,
            None if layer is None else layer.weight,
            None if layer is None else layer.bias,
            precision=precision,
            check_finite=check_finite,
            table=table,
        )
        return codes if beam == 1 else self._by_beam(mel, codes, beam)

    def _by_beam(self, mel: Tensor, greedy: Tensor, beam: int) -> Tensor:
        books = self.stacked_codebooks()[: greedy.shape[-1]]
        return functional.rvq_beam(mel, books, *self._projection("proj_in"), greedy, beam)

    def _decode(self, codes: Tensor) -> Tensor:
        ready = None if self._prepared is None else self._current()
        if ready is not None:
            return functional.rvq_decode(codes, ready.tables)
        projection = self._projection("proj_out")
        return functional.rvq_decode(codes, _stacked(self.codebooks), *projection)

    def forward(
        self,
        mel: Tensor,
        n_codebooks: int | Tensor | Sequence[int] | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> RVQOutput:
        """Quantize for training: (..., n_mels) -> RVQOutput; see `functional.rvq_quantize`."""
        return functional.rvq_quantize(
            mel,
            _stacked(self.codebooks),
            *self._projection("proj_in"),
            *self._projection("proj_out"),
            n_codebooks=n_codebooks,
            lengths=lengths,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        module = super()._apply(fn, recurse)
        begin_counting(self.codebook_weights()[0].device)
        return module


def _stacked(codebooks: nn.ModuleList) -> Tensor:
    """`stacked_codebooks`, a file less on the way of a single frame (`bench/ways.py`)."""
    weights: list[Any] = [codebook.weight for codebook in codebooks]
    return torch.stack(weights)
