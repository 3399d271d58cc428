"""The quantizer's Triton launchers, under the names that `torch_backend` has."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.rvq.code_sums import code_sums
from ..kernels.rvq.decode import rvq_decode as decode
from ..kernels.rvq.encode import rvq_encode

__all__ = ["code_sums", "decode", "encode"]


def encode(
    mel: Tensor, codebooks: Sequence[Tensor], *rest: Any, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """`kernels.rvq.encode.rvq_encode`, which wants all codebooks in one tensor."""
    books = codebooks[0] if codebooks[0].ndim == 3 else torch.stack(list(codebooks))
    return rvq_encode(mel, books, *rest, **options)
