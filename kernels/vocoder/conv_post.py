"""The generator's last convolution: leaky_relu, C channels to one, tanh or what else is final, in
one pass; its gradients in another.

Few multiplications per value read: no product for tensor cores, bound by memory. Neighbouring taps
read the same rows from the first cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import MAX_REGISTERS, ceil_div, power_of_two, start
from .taps import item_rows, leaky_relu

BLOCK_T = 128
GRAD_BLOCK_T = 64
GRAD_SHARES = 512  # programs that share out the rows, each with partial sums of its own
WIDEST = 32  # channels at once


@triton.jit
def _tanh(x):
    """To float32's accuracy at any size; below 0.6 a polynomial (relative error 3e-9)."""
    s = x * x
    p = -0.005905832459872915 * s + 0.020805353390613762
    p = (p * s - 0.0537866741526059) * s + 0.13331958128682808
    small = x + x * s * (p * s - 0.33333299267616123)
    e = tl.exp(-2 * tl.abs(x))
    large = (1 - e) / (1 + e)
    return tl.where(tl.abs(x) < 0.6, small, tl.where(x < 0, -large, large))


# Not compiled for lengths, or every one of a stream would compile a kernel of its own.
@triton.jit(do_not_specialize=["T", "rows_per_frame"])
def _conv_post_kernel(
    x_ptr,  # (B, T, C)
    w_ptr,  # (TAPS, C)
    b_ptr,  # (1,), or None
    out_ptr,  # (B, T)
    lengths_ptr,  # (B,) or None
    T,
    rows_per_frame,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    SLOPE: tl.constexpr,
    FINAL: tl.constexpr,  # "tanh", "clamp" or None
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    tiles = tl.cdiv(T, BLOCK_T)
    first_row = (tl.program_id(0) % tiles) * BLOCK_T
    b = (tl.program_id(0) // tiles).to(tl.int64)
    rows = item_rows(lengths_ptr, b=b, rows_per_frame=rows_per_frame, T=T) - first_row
    o_t = tl.arange(0, BLOCK_T)
    p_x = x_ptr + (b * T + first_row) * C
    acc = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for c in tl.range(0, C, BLOCK_C):
        o_c = c + tl.arange(0, BLOCK_C)
        for tap in tl.static_range(TAPS):
            r = o_t + (tap - (TAPS - 1) // 2)
            mask = ((r >= -first_row) & (r < rows))[:, None] & (o_c < C)[None, :]
            x = tl.load(p_x + r[:, None] * C + o_c[None, :], mask=mask, other=0.0)
            w = tl.load(w_ptr + tap * C + o_c, mask=o_c < C, other=0.0).to(tl.float32)
            acc += leaky_relu(x, SLOPE) * w[None, :]
    y = tl.sum(acc, 1)
    if b_ptr is not None:
        y += tl.load(b_ptr).to(tl.float32)
    if FINAL == "tanh":
        y = _tanh(y)
    elif FINAL == "clamp":  # NaN stays, which minima and maxima would drop
        y = tl.where(y < -1, -1.0, tl.where(y > 1, 1.0, y))
    y = tl.where(o_t < rows, y, 0.0).to(out_ptr.dtype.element_ty)  # silence after an item's end
    tl.store(out_ptr + b * T + first_row + o_t, y, mask=o_t < T - first_row)


def conv_post(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    rows_per_frame: int,
    slope: float,
    final: str | None = "tanh",
) -> Tensor:
    """Launch tanh(conv(leaky_relu(x))).

    Args:
        x: (B, T, C).
        weight: (taps, C).
        bias: (1,), or None.
        lengths, rows_per_frame: as in `conv`; zeros after an item's end.
        slope: of the leaky_relu.
        final: "tanh", "clamp" (to [-1, 1]) or None.

    Returns:
        (B, T), the dtype of `x`.
    """
    batch, rows, channels = x.shape
    out = x.new_empty(batch, rows)
    grid = batch * ceil_div(rows, BLOCK_T)
    if grid:
        start(
            _conv_post_kernel,
            grid,
            x,
            x_ptr=x,
            w_ptr=weight,
            b_ptr=bias,
            out_ptr=out,
            lengths_ptr=lengths,
            T=rows,
            rows_per_frame=rows_per_frame,
            C=channels,
            TAPS=weight.shape[0],
            SLOPE=slope,
            FINAL=final,
            BLOCK_T=BLOCK_T,
            BLOCK_C=min(WIDEST, power_of_two(channels)),
            num_warps=4,
            maxnreg=MAX_REGISTERS,
            enable_fp_fusion=True,
        )
    return out


# As the forward.
@triton.jit(do_not_specialize=["B", "T", "rows_per_frame"])
def _conv_post_grad_kernel(
    grad_ptr,  # (B, T)
    out_ptr,  # (B, T), or None where no tanh follows
    x_ptr,  # (B, T, C)
    w_ptr,  # (TAPS, C)
    grad_x_ptr,  # (B, T, C)
    grad_w_ptr,  # (programs, TAPS, C)
    grad_b_ptr,  # (programs,)
    lengths_ptr,  # (B,) or None
    B,
    T,
    rows_per_frame,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    SLOPE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
):
    BANDS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    band = tl.program_id(0) % BANDS
    share = tl.program_id(0) // BANDS
    tiles = tl.cdiv(T, BLOCK_T)
    o_t = tl.arange(0, BLOCK_T)
    o_c = band * BLOCK_C + tl.arange(0, BLOCK_C)
    o_tap = tl.arange(0, BLOCK_TAPS)
    grad_w = tl.zeros([BLOCK_TAPS, BLOCK_C], tl.float32)
    grad_b = tl.zeros([BLOCK_T], tl.float32)
    for i in tl.range(share, B * tiles, tl.num_programs(0) // BANDS):
        b = (i // tiles).to(tl.int64)
        first_row = (i % tiles) * BLOCK_T
        rows = item_rows(lengths_ptr, b=b, rows_per_frame=rows_per_frame, T=T) - first_row
        start = b * T + first_row
        mask = (o_t < rows)[:, None] & (o_c < C)[None, :]
        offset = start * C + o_t[:, None] * C + o_c[None, :]
        x = tl.load(x_ptr + offset, mask=mask, other=0.0)
        active = leaky_relu(x, SLOPE)
        grad_x = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
        for tap in tl.static_range(TAPS):
            # The row of the output that reads this one by this tap.
            r = o_t - (tap - (TAPS - 1) // 2)
            m_r = (r >= -first_row) & (r < rows)
            grad = tl.load(grad_ptr + start + r, mask=m_r, other=0.0).to(tl.float32)
            if out_ptr is not None:
                y = tl.load(out_ptr + start + r, mask=m_r, other=0.0).to(tl.float32)
                grad *= 1 - y * y
            w = tl.load(w_ptr + tap * C + o_c, mask=o_c < C, other=0.0).to(tl.float32)
            grad_x += grad[:, None] * w[None, :]
            sums = tl.sum(grad[:, None] * active, 0)
            grad_w += tl.where((o_tap == tap)[:, None], sums[None, :], 0.0)
            if tap == (TAPS - 1) // 2:
                grad_b += grad
        grad_x = tl.where(x > 0, grad_x, grad_x * SLOPE).to(grad_x_ptr.dtype.element_ty)
        tl.store(
            grad_x_ptr + offset, grad_x, mask=(o_t < T - first_row)[:, None] & (o_c < C)[None, :]
        )
    p_grad_w = grad_w_ptr + share * TAPS * C + o_tap[:, None] * C + o_c[None, :]
    tl.store(p_grad_w, grad_w, mask=(o_tap < TAPS)[:, None] & (o_c < C)[None, :])
    if band == 0:
        tl.store(grad_b_ptr + share, tl.sum(grad_b, 0))


def conv_post_grad(
    grad: Tensor,
    out: Tensor | None,
    x: Tensor,
    weight: Tensor,
    lengths: Tensor | None,
    rows_per_frame: int,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the gradients of `conv_post`.

    Args:
        grad, out: (B, T), of and from `conv_post`; without `out`, nothing follows the convolution.
        x, weight, lengths, rows_per_frame, slope: its arguments.

    Returns:
        of x, (B, T, C) in its dtype; of weight and bias, (taps, C) and (1,), float32.
    """
    batch, rows, channels = x.shape
    block_c = min(WIDEST, power_of_two(channels))
    shares = max(1, min(GRAD_SHARES, batch * ceil_div(rows, GRAD_BLOCK_T)))
    d_x = torch.empty_like(x)
    d_weight = torch.empty(shares, *weight.shape, dtype=torch.float32, device=x.device)
    d_bias = torch.empty(shares, 1, dtype=torch.float32, device=x.device)
    start(
        _conv_post_grad_kernel,
        shares * ceil_div(channels, block_c),
        x,
        grad_ptr=grad,
        out_ptr=out,
        x_ptr=x,
        w_ptr=weight,
        grad_x_ptr=d_x,
        grad_w_ptr=d_weight,
        grad_b_ptr=d_bias,
        lengths_ptr=lengths,
        B=batch,
        T=rows,
        rows_per_frame=rows_per_frame,
        C=channels,
        TAPS=weight.shape[0],
        SLOPE=slope,
        BLOCK_T=GRAD_BLOCK_T,
        BLOCK_C=block_c,
        BLOCK_TAPS=triton.next_power_of_2(weight.shape[0]),
        num_warps=4,
        maxnreg=MAX_REGISTERS,
        enable_fp_fusion=True,
    )
    return d_x, d_weight.sum(0), d_bias.sum(0)
