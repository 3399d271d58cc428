"""Sums of the rows that share a code: what codebook gradients and EMA codebooks are made of.

Rows are visited in the order of a stable sort of their codes, every code's share cut into equal
splits, each summed in a fixed order in float64 and the splits added last. No float atomics, so the
result is the same bits every time; no one-hot matrix, so memory is that of the permutation.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import ceil_div, power_of_two, row_stride, start
from .configs import CODE_SUMS


# Compiled for K, which is the model's own, and for the stride of rows, which are loaded in wide
# pieces where 16 divides it.
@triton.jit
def _code_sums_kernel(
    rows_ptr,  # (N, D), rows stride_rn apart
    order_ptr,  # (N,) row numbers by code
    starts_ptr,  # (K + 1,) first position of each code
    out_ptr,  # (SPLITS, K, D) float64
    stride_rn,
    K,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    CHUNKS: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    pid = tl.program_id(0)
    o_d = (pid % CHUNKS) * BLOCK_D + tl.arange(0, BLOCK_D)
    split = (pid // CHUNKS) % SPLITS
    code = pid // (CHUNKS * SPLITS)
    start = tl.load(starts_ptr + code)
    end = tl.load(starts_ptr + code + 1)
    share = (end - start + SPLITS - 1) // SPLITS
    start += split * share
    end = tl.minimum(end, start + share)

    total = tl.zeros([BLOCK_D], tl.float64)
    for position in tl.range(start, end, BLOCK_R):
        o_r = position + tl.arange(0, BLOCK_R)
        row = tl.load(order_ptr + o_r, mask=o_r < end, other=0)
        mask = (o_r[:, None] < end) & (o_d[None, :] < D)
        rows = tl.load(rows_ptr + row[:, None] * stride_rn + o_d[None, :], mask=mask, other=0.0)
        total += tl.sum(rows.to(tl.float64), 0)
    out = out_ptr + (split.to(tl.int64) * K + code) * D + o_d
    tl.store(out, total, mask=o_d < D)


def code_sums(codes: Tensor, rows: Tensor, codebook_size: int) -> Tensor:
    """Sum the rows of every code.

    Args:
        codes: (N,) int64; rows whose code is outside 0..K-1 are left out.
        rows: (N, D) float32.
        codebook_size: K.

    Returns:
        (K, D) float64.
    """
    size, dim = codebook_size, rows.shape[1]
    if len(rows) == 0:
        return rows.new_zeros(size, dim, dtype=torch.float64)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    ordered, order = torch.sort(codes, stable=True)
    starts = torch.searchsorted(ordered, torch.arange(size + 1, device=codes.device))
    block_d = min(CODE_SUMS.block_d, power_of_two(dim))
    # A power of two, so that few variants are compiled; enough for a code that takes most rows.
    splits = min(64, triton.next_power_of_2(ceil_div(len(rows), 256 * size)))
    out = rows.new_empty(splits, size, dim, dtype=torch.float64)
    start(
        _code_sums_kernel,
        size * splits * ceil_div(dim, block_d),
        rows,
        rows_ptr=rows,
        order_ptr=order,
        starts_ptr=starts,
        out_ptr=out,
        stride_rn=row_stride(rows),
        K=size,
        D=dim,
        SPLITS=splits,
        BLOCK_R=CODE_SUMS.block_r,
        BLOCK_D=block_d,
        num_warps=CODE_SUMS.num_warps,
        enable_fp_fusion=True,
    )
    return out.sum(0)
