"""Gradients of convolution weights and biases, the same bits every time.

The gradient of a tap is a product (N, rows) x (rows, C) of what arrives at the output and the
shifted input. A program adds a tile of it up over its own share of all rows; the shares are added
in a fixed order afterwards, so there are no float atomics. All branches of a step share a launch,
the sums of rows (the bias) ride along, and the leaky_relu before the convolution is recomputed on
the way in, so that activated inputs need not be saved.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import MAX_REGISTERS, ceil_div, dot_precision, start
from ..tf32 import INTERPRETED, round_to_tf32
from .configs import GRAD_PROGRAMS, grad_config
from .taps import item_rows, leaky_relu, pick, weights_before


# Not compiled for lengths and what follows from them, or every batch would compile a kernel of its
# own.
@triton.jit(do_not_specialize=["B", "T", "rows_per_frame", "splits"])
def _weight_grad_kernel(
    y_ptr,  # (G, B, T, N), or (B, T, N) where SHARED[0]
    x_ptr,  # (G, B, T * STRIDE, C), or without G where SHARED[1]; (B, C, T) where CHANNELS_FIRST
    out_ptr,  # (splits, elements): (N, taps, C) of each branch in turn, then (G, N) WITH_BIAS
    lengths_ptr,  # (B,) or None
    B,
    T,
    rows_per_frame,
    splits,
    N: tl.constexpr,
    C: tl.constexpr,
    TAPS: tl.constexpr,  # of each branch, and so on
    DILATIONS: tl.constexpr,
    PADDINGS: tl.constexpr,
    BLOCKS: tl.constexpr,  # of BLOCK_K columns
    STRIDE: tl.constexpr,
    SHARED: tl.constexpr,  # whether branches share y, x
    SLOPES: tl.constexpr,  # of the leaky_relu before y, x (1: none)
    CHANNELS_FIRST: tl.constexpr,
    WITH_BIAS: tl.constexpr,
    TILE: tl.constexpr,
):
    BLOCK_T: tl.constexpr = TILE[0]
    BLOCK_N: tl.constexpr = TILE[1]
    BLOCK_K: tl.constexpr = TILE[2]
    BANDS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    BRANCHES: tl.constexpr = len(TAPS)
    band = tl.program_id(0) % BANDS
    split = tl.program_id(0) // BANDS % splits
    block = tl.program_id(0) // (BANDS * splits)
    branch = 0
    for i in tl.static_range(BRANCHES - 1):
        past = (branch == i) & (block >= BLOCKS[i])
        block = tl.where(past, block - BLOCKS[i], block)
        branch = tl.where(past, i + 1, branch)
    taps = pick(TAPS, branch)
    o_n = band * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = block * BLOCK_K + tl.arange(0, BLOCK_K)  # (tap, channel)
    shift = o_k // C * pick(DILATIONS, branch) - pick(PADDINGS, branch)  # [BLOCK_K]
    o_t = tl.arange(0, BLOCK_T)
    plane = tl.cast(B, tl.int64) * T
    y_branch = y_ptr + (0 if SHARED[0] else branch * plane * N)
    x_branch = x_ptr + (0 if SHARED[1] else branch * plane * STRIDE * C)

    tiles = tl.cdiv(T, BLOCK_T)
    share = tl.cdiv(B * tiles, splits)
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    sums = tl.zeros([BLOCK_N], tl.float32)
    for i in tl.range(
        split * share, tl.minimum(B * tiles, split * share + share), num_stages=TILE[4]
    ):
        b = (i // tiles).to(tl.int64)
        first_row = (i % tiles) * BLOCK_T
        rows = item_rows(lengths_ptr, b=b, rows_per_frame=rows_per_frame, T=T) - first_row
        y = tl.load(
            y_branch + (b * T + first_row) * N + o_t[None, :] * N + o_n[:, None],
            mask=(o_t < rows)[None, :] & (o_n < N)[:, None],
            other=0.0,
        )  # [BLOCK_N, BLOCK_T]
        r = o_t[:, None] * STRIDE + shift[None, :]
        m_x = (r >= -first_row * STRIDE) & (r < rows * STRIDE) & (o_k < taps * C)[None, :]
        if CHANNELS_FIRST:
            p_x = x_branch + b * T * C + first_row + r + (o_k % C * T)[None, :]
        else:
            p_x = x_branch + (b * T + first_row) * STRIDE * C + r * C + (o_k % C)[None, :]
        x = tl.load(p_x, mask=m_x, other=0.0)  # [BLOCK_T, BLOCK_K]
        y = leaky_relu(y, SLOPES[0])
        if block == 0:
            sums += tl.sum(y.to(tl.float32), 1)
        y, x = y.to(p_x.dtype.element_ty), leaky_relu(x, SLOPES[1]).to(p_x.dtype.element_ty)
        if INTERPRETED:
            y, x = y.to(tl.float32), x.to(tl.float32)
        if TILE[3] == "tf32":
            y, x = round_to_tf32(y), round_to_tf32(x)
        acc = tl.dot(y, x, acc, input_precision=TILE[3], out_dtype=tl.float32)

    elements = weights_before(TAPS, branch=BRANCHES, SIZE=N * C)
    p_split = out_ptr + split.to(tl.int64) * (elements + (BRANCHES * N if WITH_BIAS else 0))
    start = weights_before(TAPS, branch=branch, SIZE=N * C)
    p_out = p_split + start + o_n[:, None] * (taps * C) + o_k[None, :]
    tl.store(p_out, acc, mask=(o_n < N)[:, None] & (o_k < taps * C)[None, :])
    if WITH_BIAS:
        p_bias = p_split + elements + branch * N + o_n
        tl.store(p_bias, sums, mask=o_n < tl.where(block == 0, N, 0))


def conv_weight_grad(
    y: Tensor,
    x: Tensor,
    taps: tuple[int, ...],
    dilations: tuple[int, ...],
    paddings: tuple[int, ...],
    lengths: Tensor | None = None,
    rows_per_frame: int = 1,
    *,
    stride: int = 1,
    slopes: tuple[float, float] = (1.0, 1.0),
    with_bias: bool = True,
    channels_first: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Launch sum over rows of leaky_relu(y)[t] (x) leaky_relu(x)[t * stride + tap * d - padding].

    Args:
        y: (G, B, T, N), or (B, T, N) shared by the branches.
        x: (G, B, T * stride, C) likewise, or (B, C, T) if `channels_first`.
        taps, dilations, paddings: of each branch.
        lengths, rows_per_frame, stride: as in `conv`; `rows_per_frame` counts rows of y.
        slopes: of the leaky_relu on y and on x (1: none).
        with_bias: also return the sums of y.

    Returns:
        float32 sums, (N, taps, C) of each branch, one after another in one dimension; and (G, N),
        or None.
    """
    batch, rows, n = y.shape[-3:]
    channels = x.shape[1] if channels_first else x.shape[-1]
    config = grad_config(n, channels, x)
    blocks = tuple(ceil_div(size * channels, config.block_k) for size in taps)
    programs = sum(blocks) * ceil_div(n, config.block_n)
    tiles = batch * ceil_div(rows, config.block_t)
    splits = max(1, min(tiles, GRAD_PROGRAMS // programs))
    sizes = [sum(taps) * n * channels, len(taps) * n if with_bias else 0]
    out = torch.empty(splits, sum(sizes), dtype=torch.float32, device=x.device)
    start(
        _weight_grad_kernel,
        programs * splits,
        x,
        y_ptr=y,
        x_ptr=x,
        out_ptr=out,
        lengths_ptr=lengths,
        B=batch,
        T=rows,
        rows_per_frame=rows_per_frame,
        splits=splits,
        N=n,
        C=channels,
        TAPS=taps,
        DILATIONS=dilations,
        PADDINGS=paddings,
        BLOCKS=blocks,
        STRIDE=stride,
        SHARED=(y.ndim == 3, x.ndim == 3),
        SLOPES=slopes,
        CHANNELS_FIRST=channels_first,
        WITH_BIAS=with_bias,
        TILE=config.tile(dot_precision(x)),
        num_warps=config.num_warps,
        maxnreg=MAX_REGISTERS,
        enable_fp_fusion=True,
    )
    weight, bias = out.sum(0).split(sizes)  # of weights and biases by one operator
    return weight, bias.view(len(taps), n) if with_bias else None
