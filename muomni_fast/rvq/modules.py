"""The quantizer as a drop-in module: the reference's constructor and state dict."""

import dataclasses
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import reference
from ..counters import meet
from ..preparable import Preparable
from . import functional, ops


@dataclasses.dataclass
class PreparedRVQ:
    """What inference needs of a quantizer's weights, computed once.

    Attributes:
        codebooks: (Q, K, D), all stages in one tensor.
        half_norms: (Q, K) float32, ||c||^2 / 2.
        tables: (Q, K, n_mels), the codewords already projected back, the first stage's with the
            bias.
    """

    codebooks: Tensor
    half_norms: Tensor
    tables: Tensor


class RVQ(Preparable, reference.RVQ):
    __doc__ = reference.RVQ.__doc__

    _encode = staticmethod(functional.rvq_encode)
    _decode = staticmethod(functional.rvq_decode)
    _quantize = staticmethod(functional.rvq_quantize)
    code_sums = staticmethod(functional.code_sums)
    _prepared: PreparedRVQ | None = None

    @torch.no_grad()
    def prepare(self) -> Self:
        """Compute once what encoding and decoding derive from the weights: stacked codebooks, their
        norms, and codewords already projected back, so that decoding only gathers and adds.

        Decoded frames then differ by rounding (the projection is applied before the sum). Nothing
        watches the weights: `train()`, `load_state_dict()` and `to()` drop what was prepared, other
        changes need another call.

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
                tables[0] += self.proj_out.bias.double()  # the first stage is always decoded
        tables = tables.to(codebooks.dtype)
        if not tables.isfinite().all():
            raise ValueError("prepare: the codebooks or proj_out are not finite")
        self._prepared = PreparedRVQ(codebooks, ops.half_norms(codebooks.float()), tables)
        return self

    def encode(self, mel: Tensor, precision: str = "exact", check_finite: bool = False) -> Tensor:
        """Codes of mel frames: (..., n_mels) -> (..., n_codebooks) int64; see
        `functional.rvq_encode`."""
        if self._prepared is None:
            return super().encode(mel, precision, check_finite)
        return functional.rvq_encode(
            mel,
            self._prepared.codebooks,
            *self._projection("proj_in"),
            precision=precision,
            check_finite=check_finite,
            half_norms=self._prepared.half_norms,
        )

    def decode(self, codes: Tensor) -> Tensor:
        """Mel frames of codes: (..., k <= n_codebooks) -> (..., n_mels); see
        `functional.rvq_decode`."""
        if self._prepared is None:
            return super().decode(codes)
        return functional.rvq_decode(codes, self._prepared.tables)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        module = super()._apply(fn, recurse)
        meet(self.codebook_weights()[0].device)
        return module
