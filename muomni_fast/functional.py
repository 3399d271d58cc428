"""The library's operations as functions, each on the fastest backend that can run it.

The quantizer's run as operators (`rvq.ops`, `rvq.quantize_ops`): Triton kernels on a GPU, certified
blocks of GEMM scores on a CPU, both exact. So do residual blocks (`vocoder.ops`).
`muomni_fast.doctor()` says what runs where.
"""

from .kernels.rvq.table import search_table
from .rvq.functional import code_sums, rvq_decode, rvq_encode, rvq_quantize
from .vocoder.functional import mrf

__all__ = ["code_sums", "mrf", "rvq_decode", "rvq_encode", "rvq_quantize", "search_table"]
