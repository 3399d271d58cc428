"""The quantizer's Triton launchers, under the names that `torch_rvq` has."""

from .kernels.code_sums import code_sums
from .kernels.half_norms import half_norms
from .kernels.rvq_decode import rvq_decode as decode
from .kernels.rvq_encode import rvq_encode as encode

__all__ = ["code_sums", "decode", "encode", "half_norms"]
