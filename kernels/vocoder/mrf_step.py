"""MRF, one launch per convolution step: all branches of a level side by side.

HiFi-GAN (Kong et al., 2020), section 2.2. A step is one convolution of every residual block of a
level, the blocks (branches) a grid axis. It activates its input on the way in, adds bias and
residual and activates on the way out. In the last step of a level a program goes over the branches
instead, and sums them in its accumulator. No activation, addition or branch sum moves a tensor of
its own: eager moves each about six times as often. A backward step is the same kernel on flipped,
transposed weights.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from ..launch import MAX_REGISTERS, ceil_div, dot_precision, start
from .configs import conv_config
from .taps import accumulate_taps, derivative, item_rows, leaky_relu, pick, weights_before


# Not compiled for lengths, or every one of a stream would compile a kernel of its own.
@triton.jit(do_not_specialize=["B", "T", "rows_per_frame"])
def _mrf_step_kernel(
    x_ptr,  # (G, B, T, C), or (B, T, C) where SHARED[0]
    res_ptr,  # the same where SHARED[1], or None
    sign_ptr,  # the same where SHARED[2], or None
    w_ptr,  # (C, taps, C) of each branch in turn
    b_ptr,  # (G, C), or None
    out_ptr,  # (G, B, T, C), or (B, T, C) where SUM
    lengths_ptr,  # (B,) or None
    B,
    T,
    rows_per_frame,
    scale,
    C: tl.constexpr,
    TAPS: tl.constexpr,  # of each branch
    DILATIONS: tl.constexpr,
    SHARED: tl.constexpr,  # whether branches share x, residual, sign
    SUM: tl.constexpr,
    SLOPE: tl.constexpr,
    IN_SLOPE: tl.constexpr,
    OUT_SLOPE: tl.constexpr,
    TILE: tl.constexpr,
):
    BLOCK_T: tl.constexpr = TILE[0]
    BLOCK_N: tl.constexpr = TILE[1]
    COLUMNS: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    AT_ONCE: tl.constexpr = len(TAPS) if SUM else 1
    ELSEWHERE: tl.constexpr = len(TAPS) // AT_ONCE  # programs that share out the branches
    pid = tl.program_id(0)
    o_n = (pid % COLUMNS) * BLOCK_N + tl.arange(0, BLOCK_N)
    branch = pid // COLUMNS % ELSEWHERE
    tile = pid // (COLUMNS * ELSEWHERE)
    tiles = tl.cdiv(T, BLOCK_T)
    first_row = (tile % tiles) * BLOCK_T
    b = (tile // tiles).to(tl.int64)
    rows = item_rows(lengths_ptr, b=b, rows_per_frame=rows_per_frame, T=T)
    if first_row >= rows:
        return
    # Everything is counted from this tile's first row on.
    plane = tl.cast(B, tl.int64) * T * C
    start = (b * T + first_row) * C
    o_t = tl.arange(0, BLOCK_T)
    offset = start + o_t[:, None] * C + o_n[None, :]
    mask = (o_t < T - first_row)[:, None] & (o_n < C)[None, :]

    acc = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for g in tl.range(branch, branch + AT_ONCE, num_stages=1):
        taps = pick(TAPS, g)
        dilation = pick(DILATIONS, g)
        acc = accumulate_taps(
            acc=acc,
            x_ptr=x_ptr + start + (0 if SHARED[0] else g * plane),
            w_ptr=w_ptr + weights_before(TAPS, branch=g, SIZE=C * C),
            o_r=o_t - (taps - 1) // 2 * dilation,
            lo=-first_row,
            hi=rows - first_row,
            o_n=o_n,
            first=0,
            last=taps,
            taps=taps,
            dilation=dilation,
            stride_c=0,
            N=C,
            C=C,
            SLOPE=IN_SLOPE,
            CHANNELS_FIRST=False,
            TILE=TILE,
        )
        if b_ptr is not None:
            acc += tl.load(b_ptr + g * C + o_n, mask=o_n < C, other=0.0).to(tl.float32)[None, :]
    if sign_ptr is not None:
        p_sign = sign_ptr + (0 if SHARED[2] else branch * plane) + offset
        acc = derivative(acc, p_sign=p_sign, mask=mask, SLOPE=SLOPE)
    if res_ptr is not None:
        for g in tl.static_range(AT_ONCE):
            p_res = res_ptr + (0 if SHARED[1] else (branch + g) * plane) + offset
            acc += tl.load(p_res, mask=mask, other=0.0).to(tl.float32)
    acc = leaky_relu(acc * scale, OUT_SLOPE)
    tl.store(out_ptr + branch * plane + offset, acc.to(out_ptr.dtype.element_ty), mask=mask)


def mrf_step(
    x: Tensor,
    weights: Tensor,
    biases: Tensor | None,
    taps: tuple[int, ...],
    dilations: tuple[int, ...],
    lengths: Tensor | None = None,
    rows_per_frame: int = 1,
    *,
    residual: Tensor | None = None,
    sign: Tensor | None = None,
    total: bool = False,
    scale: float = 1.0,
    slope: float,
    activate_in: bool = False,
    activate_out: bool = False,
) -> Tensor:
    """Launch one convolution of every branch.

        leaky_relu((leaky_relu'(sign) * (conv(leaky_relu(x)) + bias) + residual) * scale)

    Args:
        x, residual, sign: (G, B, T, C), or (B, T, C) shared by the branches.
        weights: (C, taps, C) of each branch, one after another in one dimension.
        biases: (G, C), or None.
        taps, dilations: of each branch.
        lengths, rows_per_frame: as in `conv`.
        total: add the branches up; `sign` is shared then.
        scale: multiplies the result.
        slope: of every leaky_relu.
        activate_in, activate_out: whether it is applied to x, and to the result.

    Returns:
        (G, B, T, C), or (B, T, C) if `total`.
    """
    batch, rows, channels = x.shape[-3:]
    shape = (batch, rows, channels) if total else (len(taps), batch, rows, channels)
    config = conv_config(channels, channels, x, math.prod(shape[:-1]))
    out = x.new_empty(shape)
    grid = batch * ceil_div(rows, config.block_t) * ceil_div(channels, config.block_n)
    shared = tuple(t is None or t.ndim == 3 for t in (x, residual, sign))
    if grid:
        start(
            _mrf_step_kernel,
            grid if total else grid * len(taps),
            x,
            x_ptr=x,
            res_ptr=residual,
            sign_ptr=sign,
            w_ptr=weights,
            b_ptr=biases,
            out_ptr=out,
            lengths_ptr=lengths,
            B=batch,
            T=rows,
            rows_per_frame=rows_per_frame,
            scale=scale,
            C=channels,
            TAPS=taps,
            DILATIONS=dilations,
            SHARED=shared,
            SUM=total,
            SLOPE=slope,
            IN_SLOPE=slope if activate_in else 1.0,
            OUT_SLOPE=slope if activate_out else 1.0,
            TILE=config.tile(dot_precision(x)),
            num_warps=config.num_warps,
            maxnreg=MAX_REGISTERS,
            enable_fp_fusion=True,
        )
    return out
