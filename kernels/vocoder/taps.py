"""The functions that every convolution kernel is made of.

Activations are channels-last, (B, T, C): a tap is a shift of rows, and a tile of rows one block of
memory. Weights are (N, taps, C), so that both operands of the product are contiguous along the sum.
A product takes BLOCK_K of the taps x channels: several taps at once where C is smaller, so that
tensor cores are not fed crumbs, and a part of one tap where it is larger. Sums are float32; rows
outside an item count as zeros, as padding does.
"""

import triton
import triton.language as tl

from ..tf32 import INTERPRETED, round_to_tf32


@triton.jit
def leaky_relu(x, SLOPE: tl.constexpr):
    """max(x, SLOPE x) in float32; SLOPE = 1 leaves `x` alone."""
    if SLOPE != 1.0:
        x = x.to(tl.float32)
        x = tl.maximum(x, x * SLOPE)
    return x


@triton.jit
def item_rows(lengths_ptr, b, rows_per_frame, T):
    """Rows of item `b` that count: all T, or lengths[b] * rows_per_frame."""
    rows = T
    if lengths_ptr is not None:
        rows = tl.minimum(T, tl.load(lengths_ptr + b).to(tl.int32) * rows_per_frame)
    return rows


@triton.jit
def accumulate_taps(
    acc,  # [BLOCK_T, BLOCK_N] float32
    x_ptr,  # a row; (rows, C), or (C, stride_c) where CHANNELS_FIRST
    w_ptr,  # (N, taps, C)
    o_r,  # [BLOCK_T] rows that tap 0 reads, from x_ptr's on
    lo,  # rows that count, from x_ptr's on
    hi,
    o_n,  # [BLOCK_N]
    first,  # of the taps to add, up to `last`
    last,
    taps,
    dilation,
    stride_c,
    N: tl.constexpr,
    C: tl.constexpr,
    SLOPE: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr,
    TILE: tl.constexpr,
):
    """acc + sum over taps of leaky_relu(x[o_r + tap * dilation]) w[:, tap]^T."""
    BLOCK_K: tl.constexpr = TILE[2]
    FOLD: tl.constexpr = BLOCK_K // C if BLOCK_K % C == 0 else 1  # taps at once
    PARTS: tl.constexpr = (C + BLOCK_K - 1) // BLOCK_K  # of a tap
    o_k = tl.arange(0, BLOCK_K)
    p_w = w_ptr + o_n[None, :] * (taps * C)
    for j in tl.range(0, tl.cdiv(last - first, FOLD) * PARTS, num_stages=TILE[4]):
        if FOLD > 1:
            tap = first + j * FOLD + o_k // C  # [BLOCK_K]
            o_c = o_k % C
            r = o_r[:, None] + (tap * dilation)[None, :]
            m_x = (r >= lo) & (r < hi) & (tap < last)[None, :]
            m_w = (tap < last)[:, None] & (o_n < N)[None, :]
        else:
            tap = first + j // PARTS
            o_c = (j % PARTS) * BLOCK_K + o_k
            r = (o_r + tap * dilation)[:, None]
            m_x = (r >= lo) & (r < hi)
            m_w = (o_n < N)[None, :]
            if C % BLOCK_K != 0:
                m_x = m_x & (o_c < C)[None, :]
                m_w = m_w & (o_c < C)[:, None]
        if CHANNELS_FIRST:
            a = tl.load(x_ptr + r + (o_c * stride_c)[None, :], mask=m_x, other=0.0)
        else:
            a = tl.load(x_ptr + r * C + o_c[None, :], mask=m_x, other=0.0)
        w = tl.load(p_w + (tap * C + o_c)[:, None], mask=m_w, other=0.0)
        a = leaky_relu(a, SLOPE).to(w.dtype)
        if INTERPRETED:  # it multiplies no bfloat16
            a, w = a.to(tl.float32), w.to(tl.float32)
        if TILE[3] == "tf32":
            a, w = round_to_tf32(a), round_to_tf32(w)
        acc = tl.dot(a, w, acc, input_precision=TILE[3], out_dtype=tl.float32)
    return acc


@triton.jit
def derivative(acc, p_sign, mask, SLOPE: tl.constexpr):
    """acc times the derivative of leaky_relu where its input (or output) is at p_sign, if any."""
    if p_sign is not None:
        sign = tl.load(p_sign, mask=mask, other=0.0).to(tl.float32)
        acc = tl.where(sign > 0, acc, acc * SLOPE)
    return acc


@triton.jit
def pick(VALUES: tl.constexpr, index):
    """VALUES[index], of a tuple known at compile time."""
    value = VALUES[0]
    for i in tl.static_range(1, len(VALUES)):
        value = tl.where(index == i, VALUES[i], value)
    return value


@triton.jit
def weights_before(TAPS: tl.constexpr, branch, SIZE: tl.constexpr):
    """Weights of one step's branches before this one, of SIZE per tap."""
    before = 0
    for i in tl.static_range(len(TAPS)):
        before += tl.where(branch > i, TAPS[i] * SIZE, 0)
    return before
