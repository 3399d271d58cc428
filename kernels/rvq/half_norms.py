"""Half the squared norm of every codeword, which the search's scores start from.

From float64 sums: the error of float32 ones would exceed what the certificate allows for.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import power_of_two


@triton.jit
def _half_norms_kernel(
    codebooks_ptr,  # (rows, D)
    out_ptr,
    rows,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.arange(0, BLOCK_D)
    mask = (o_r[:, None] < rows) & (o_d[None, :] < D)
    words = tl.load(codebooks_ptr + o_r[:, None] * D + o_d[None, :], mask=mask, other=0.0)
    words = words.to(tl.float64)
    tl.store(out_ptr + o_r, (0.5 * tl.sum(words * words, 1)).to(tl.float32), mask=o_r < rows)


def half_norms(codebooks: Tensor) -> Tensor:
    """||c||^2 / 2 of every codeword, from float64 sums: (Q, K, D) float32 -> (Q, K) float32."""
    n_codebooks, size, dim = codebooks.shape
    codebooks = codebooks.contiguous()
    out = codebooks.new_empty(n_codebooks, size)
    block_r = 32
    with torch.cuda.device_of(codebooks):
        _half_norms_kernel[(triton.cdiv(n_codebooks * size, block_r),)](
            codebooks_ptr=codebooks,
            out_ptr=out,
            rows=n_codebooks * size,
            D=dim,
            BLOCK_R=block_r,
            BLOCK_D=power_of_two(dim),
            num_warps=4,
            enable_fp_fusion=True,
        )
    return out
