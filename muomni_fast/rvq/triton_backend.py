"""The quantizer's Triton launchers, under the names that `torch_backend` has."""

from ..kernels.rvq.code_sums import code_sums
from ..kernels.rvq.decode import rvq_decode as decode
from ..kernels.rvq.encode import rvq_encode as encode

__all__ = ["code_sums", "decode", "encode"]
