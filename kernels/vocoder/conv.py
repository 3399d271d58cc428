"""One convolution, and the transposed one.

The leaky_relu before it is applied on the way in, and a bias and an addend (a speaker, a harmonic
source) are added on the way out, so that none of them moves the activations once more.

A transposed convolution (HiFi-GAN's upsampling) is a convolution to factor x C_out columns ordered
(phase, C_out), so that interleaving the phases is a view. A column needs only the taps of its own
phase: two of three where the kernel is twice the factor. Its gradient is a convolution that moves
`factor` rows for each row it writes.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..launch import MAX_REGISTERS, ceil_div, dot_precision, start
from .configs import conv_config
from .taps import accumulate_taps, derivative, item_rows


# Not compiled for the values of these: T, or every length of a stream would compile a kernel of its
# own; taps, or the compiler would unroll the loop over them, and run out of registers.
@triton.jit(do_not_specialize=["T", "rows_per_frame", "taps"])
def _conv_kernel(
    x_ptr,  # (B, T * STRIDE, C), or (B, C, T) where CHANNELS_FIRST
    sign_ptr,  # (B, T, N), or None
    w_ptr,  # (N, taps, C)
    b_ptr,  # (N), or None
    add_ptr,  # (B, T, N) where EACH_ROW, else (B, N / phases); or None
    out_ptr,  # (B, T, N)
    lengths_ptr,  # (B,) or None
    T,
    rows_per_frame,
    taps,
    N: tl.constexpr,
    C: tl.constexpr,
    DILATION: tl.constexpr,
    OFFSET: tl.constexpr,  # row of tap 0
    STRIDE: tl.constexpr,
    PHASES: tl.constexpr,  # (phases, taps of the whole kernel, its padding), or None
    SLOPE: tl.constexpr,
    CHANNELS_FIRST: tl.constexpr,
    EACH_ROW: tl.constexpr,
    TILE: tl.constexpr,
):
    BLOCK_T: tl.constexpr = TILE[0]
    BLOCK_N: tl.constexpr = TILE[1]
    COLUMNS: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    column = tl.program_id(0) % COLUMNS
    tiles = tl.cdiv(T, BLOCK_T)
    first_row = (tl.program_id(0) // COLUMNS % tiles) * BLOCK_T
    b = (tl.program_id(0) // (COLUMNS * tiles)).to(tl.int64)
    rows = item_rows(lengths_ptr, b=b, rows_per_frame=rows_per_frame, T=T)

    o_t = tl.arange(0, BLOCK_T)
    o_n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    first, last = 0, taps
    WIDTH: tl.constexpr = N if PHASES is None else N // PHASES[0]
    if PHASES is not None:
        # Tap i of phase p is tap p + padding + (i + least) * phases of the whole kernel.
        PADDING: tl.constexpr = PHASES[2]
        least_phase = column * BLOCK_N // WIDTH
        most_phase = tl.minimum(column * BLOCK_N + BLOCK_N - 1, N - 1) // WIDTH
        first = OFFSET - (most_phase + PADDING) // PHASES[0]
        last = OFFSET + 1 + (PHASES[1] - 1 - least_phase - PADDING) // PHASES[0]
    x_row = first_row * STRIDE  # everything is counted from this row on
    x_start = b * T * STRIDE * C + x_row.to(tl.int64) * (1 if CHANNELS_FIRST else C)
    acc = accumulate_taps(
        acc=tl.zeros([BLOCK_T, BLOCK_N], tl.float32),
        x_ptr=x_ptr + x_start,
        w_ptr=w_ptr,
        o_r=o_t * STRIDE + OFFSET,
        lo=-x_row,
        hi=rows * STRIDE - x_row,
        o_n=o_n,
        first=first,
        last=last,
        taps=taps,
        dilation=DILATION,
        stride_c=T,
        N=N,
        C=C,
        SLOPE=SLOPE if sign_ptr is None else 1.0,
        CHANNELS_FIRST=CHANNELS_FIRST,
        TILE=TILE,
    )
    if b_ptr is not None:
        acc += tl.load(b_ptr + o_n, mask=o_n < N, other=0.0).to(tl.float32)[None, :]
    start = (b * T + first_row) * N
    offset = start + o_t[:, None] * N + o_n[None, :]
    mask = (o_t < T - first_row)[:, None] & (o_n < N)[None, :]
    if add_ptr is not None:
        if EACH_ROW:
            acc += tl.load(add_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        else:
            p_add = add_ptr + b * WIDTH + o_n % WIDTH
            acc += tl.load(p_add, mask=o_n < N, other=0.0).to(tl.float32)[None, :]
    p_sign = None if sign_ptr is None else sign_ptr + offset
    acc = derivative(acc, p_sign=p_sign, mask=mask, SLOPE=SLOPE)
    tl.store(out_ptr + offset, acc.to(out_ptr.dtype.element_ty), mask=mask)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None = None,
    rows_per_frame: int = 1,
    *,
    padding: int,
    dilation: int = 1,
    stride: int = 1,
    phases: tuple[int, int, int] | None = None,
    slope: float = 1.0,
    sign: Tensor | None = None,
    channels_first: bool = False,
    addend: Tensor | None = None,
) -> Tensor:
    """Launch one convolution; all tensors on one device and of one dtype.

    Args:
        x: (B, T * stride, C), or (B, C, T) if `channels_first`.
        weight: (N, taps, C).
        bias: (N,), or None.
        lengths: (B,) integers; only the first lengths[i] * rows_per_frame of an item's T rows
            count, and what is written after them means nothing.
        rows_per_frame: rows per unit of `lengths`.
        padding: rows before the item that tap 0 of its first row reads.
        dilation: rows between taps; may be negative.
        stride: rows of `x` per row written.
        phases: (phases, taps, padding) of a transposed convolution, whose columns are phases first.
        slope: of the leaky_relu before the convolution (1: none); with `sign`, of the one whose
            derivative there multiplies the result instead.
        sign: (B, T, N), input or output of that activation.
        addend: (B, T * phases, N / phases), contiguous, or (B, 1, N / phases), the same for all
            rows; added to the result.

    Returns:
        (B, T, N), the dtype of `x`.
    """
    n, taps, channels = weight.shape
    batch = x.shape[0]
    rows = x.shape[2 if channels_first else 1] // stride
    config = conv_config(n, channels, x, batch * rows)
    out = x.new_empty(batch, rows, n)
    grid = batch * ceil_div(rows, config.block_t) * ceil_div(n, config.block_n)
    if grid:
        start(
            _conv_kernel,
            grid,
            x,
            x_ptr=x,
            sign_ptr=sign,
            w_ptr=weight,
            b_ptr=bias,
            add_ptr=addend,
            out_ptr=out,
            lengths_ptr=lengths,
            T=rows,
            rows_per_frame=rows_per_frame,
            taps=taps,
            N=n,
            C=channels,
            DILATION=dilation,
            OFFSET=-padding,
            STRIDE=stride,
            PHASES=phases,
            SLOPE=slope,
            CHANNELS_FIRST=channels_first,
            EACH_ROW=addend is not None and addend.shape[1] > 1,
            TILE=config.tile(dot_precision(x)),
            num_warps=config.num_warps,
            maxnreg=MAX_REGISTERS,
            enable_fp_fusion=True,
        )
    return out
