"""MRF in one launch: every residual block of a level, all steps, and their mean.

HiFi-GAN (Kong et al., 2020), section 2.2. A program takes a strip of rows and the halo around it,
runs all convolutions of all branches on it, each on a range that shrinks by the convolution's own
reach, and sums the branches in the accumulator of the last. What it keeps in between lies in
scratch memory of its own, indexed by program, not by strip: the grid is as large as the device
holds at once, so scratch stays in the last cache and device memory sees the level's input once,
its output once and the weights. A strip may be longer than a tensor-core tile, so the halo, 60 rows
a side at kernel 11 with dilations 1, 3, 5, is a small part of it.

Steps read and write the same rows at any position: a barrier parts them.
"""

import dataclasses

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import MAX_REGISTERS, ceil_div, dot_precision, start
from .configs import MOST_SCRATCH, StripConfig, reaches, scratch_bytes, strip_halo
from .taps import accumulate_taps, item_rows, leaky_relu, pick, weights_before


@triton.jit
def _strip_step(
    src_ptr,  # (rows, C), row 0 of the strip, as of the next two
    res_ptr,  # (rows, C), or None
    dst_ptr,  # (rows, C)
    w_ptr,  # (C, taps, C)
    b_ptr,  # (C)
    before,  # rows of the strip to write: from -before on, up to LENGTH + before
    lo,  # rows of the item
    hi,
    taps,
    dilation,
    C: tl.constexpr,
    LENGTH: tl.constexpr,
    IN_SLOPE: tl.constexpr,
    OUT_SLOPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """One convolution of one branch."""
    BLOCK_T: tl.constexpr = TILE[0]
    BLOCK_N: tl.constexpr = TILE[1]
    COLUMNS: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    begin = tl.maximum(lo, -before)
    end = tl.minimum(hi, LENGTH + before)
    # A last tile has rows beyond `end`, which are not written. Nor may they read: what they would
    # read, no step has written. So reads are clamped to the rows that earlier steps have written.
    reach = (taps - 1) // 2 * dilation
    for i in tl.range(0, tl.cdiv(end - begin, BLOCK_T) * COLUMNS, num_stages=1):
        o_t = begin + (i // COLUMNS) * BLOCK_T + tl.arange(0, BLOCK_T)
        o_n = (i % COLUMNS) * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = accumulate_taps(
            acc=tl.zeros([BLOCK_T, BLOCK_N], tl.float32),
            x_ptr=src_ptr,
            w_ptr=w_ptr,
            o_r=o_t - reach,
            lo=tl.maximum(lo, begin - reach),
            hi=tl.minimum(hi, end + reach),
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
        acc += tl.load(b_ptr + o_n, mask=o_n < C, other=0.0).to(tl.float32)[None, :]
        offset = o_t[:, None] * C + o_n[None, :]
        mask = (o_t < end)[:, None] & (o_n < C)[None, :]
        if res_ptr is not None:
            acc += tl.load(res_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        acc = leaky_relu(acc, OUT_SLOPE)
        tl.store(dst_ptr + offset, acc.to(dst_ptr.dtype.element_ty), mask=mask)


# Not compiled for lengths, or every one of a stream would compile a kernel of its own.
@triton.jit(do_not_specialize=["B", "T", "rows_per_frame"])
def _mrf_strip_kernel(
    x_ptr,  # (B, T, C)
    w_ptr,  # per step, (C, taps, C) of each branch
    b_ptr,  # (steps, G, C)
    out_ptr,  # (B, T, C)
    scratch_ptr,  # (programs, 2 G, LENGTH + 2 HALO, C)
    lengths_ptr,  # (B,) or None
    B,
    T,
    rows_per_frame,
    scale,
    C: tl.constexpr,
    TAPS: tl.constexpr,  # of each branch
    DILATIONS: tl.constexpr,  # of each branch in turn
    REACH: tl.constexpr,  # rows that what follows each dilation's steps still reads, a side
    HALO: tl.constexpr,
    LENGTH: tl.constexpr,  # rows of a strip
    PAIRED: tl.constexpr,  # "1": a second convolution follows each dilated one
    SLOPE: tl.constexpr,
    TILE: tl.constexpr,
):
    BLOCK_T: tl.constexpr = TILE[0]
    BLOCK_N: tl.constexpr = TILE[1]
    COLUMNS: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    BRANCHES: tl.constexpr = len(TAPS)
    DEPTH: tl.constexpr = len(DILATIONS) // BRANCHES
    SLICE: tl.constexpr = (LENGTH + 2 * HALO) * C
    PER: tl.constexpr = 2 if PAIRED else 1
    LOOPS: tl.constexpr = DEPTH if PAIRED else DEPTH - 1
    step = weights_before(TAPS, branch=BRANCHES, SIZE=C * C)
    strips = tl.cdiv(T, LENGTH)
    scratch = scratch_ptr + tl.program_id(0).to(tl.int64) * (2 * BRANCHES * SLICE) + HALO * C

    for strip in tl.range(tl.program_id(0), B * strips, tl.num_programs(0), num_stages=1):
        b = (strip // strips).to(tl.int64)
        first_row = (strip % strips) * LENGTH
        lo = -first_row
        hi = item_rows(lengths_ptr, b=b, rows_per_frame=rows_per_frame, T=T) - first_row
        x = x_ptr + (b * T + first_row) * C
        for i in tl.range(0, BRANCHES * LOOPS, num_stages=1):
            g = i // LOOPS
            p = i % LOOPS
            taps = pick(TAPS, g)
            dilation = pick(DILATIONS, g * DEPTH + p)
            reach = pick(REACH, g * DEPTH + p)
            weights = w_ptr + PER * p * step + weights_before(TAPS, branch=g, SIZE=C * C)
            biases = b_ptr + (PER * p * BRANCHES + g) * C
            even = scratch + 2 * g * SLICE
            odd = even + SLICE
            if PAIRED:
                # even: inner activation; odd: the branch's running sum, updated in place.
                src = tl.where(p == 0, x, odd)
                _strip_step(
                    src_ptr=src,
                    res_ptr=None,
                    dst_ptr=even,
                    w_ptr=weights,
                    b_ptr=biases,
                    before=reach + (taps - 1) // 2,
                    lo=lo,
                    hi=hi,
                    taps=taps,
                    dilation=dilation,
                    C=C,
                    LENGTH=LENGTH,
                    IN_SLOPE=SLOPE,
                    OUT_SLOPE=SLOPE,
                    TILE=TILE,
                )
                tl.debug_barrier()
                if p < DEPTH - 1:
                    _strip_step(
                        src_ptr=even,
                        res_ptr=src,
                        dst_ptr=odd,
                        w_ptr=weights + step,
                        b_ptr=biases + BRANCHES * C,
                        before=reach,
                        lo=lo,
                        hi=hi,
                        taps=taps,
                        dilation=1,
                        C=C,
                        LENGTH=LENGTH,
                        IN_SLOPE=1.0,
                        OUT_SLOPE=1.0,
                        TILE=TILE,
                    )
                    tl.debug_barrier()
            else:
                src = tl.where(p == 0, x, tl.where(p % 2 == 1, even, odd))
                dst = tl.where(p % 2 == 0, even, odd)
                _strip_step(
                    src_ptr=src,
                    res_ptr=src,
                    dst_ptr=dst,
                    w_ptr=weights,
                    b_ptr=biases,
                    before=reach,
                    lo=lo,
                    hi=hi,
                    taps=taps,
                    dilation=dilation,
                    C=C,
                    LENGTH=LENGTH,
                    IN_SLOPE=SLOPE,
                    OUT_SLOPE=1.0,
                    TILE=TILE,
                )
                tl.debug_barrier()

        # The last convolution of every branch, into one accumulator.
        end = tl.minimum(hi, LENGTH)
        w_last = w_ptr + (PER * DEPTH - 1) * step
        b_last = b_ptr + (PER * DEPTH - 1) * BRANCHES * C
        for i in tl.range(0, tl.cdiv(end, BLOCK_T) * COLUMNS, num_stages=1):
            o_t = (i // COLUMNS) * BLOCK_T + tl.arange(0, BLOCK_T)
            o_n = (i % COLUMNS) * BLOCK_N + tl.arange(0, BLOCK_N)
            offset = o_t[:, None] * C + o_n[None, :]
            mask = (o_t < end)[:, None] & (o_n < C)[None, :]
            acc = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
            for g in tl.range(0, BRANCHES, num_stages=1):
                taps = pick(TAPS, g)
                dilation = 1 if PAIRED else pick(DILATIONS, g * DEPTH + DEPTH - 1)
                reach = (taps - 1) // 2 * dilation
                if DEPTH == 1:
                    running = x
                elif PAIRED:
                    running = scratch + (2 * g + 1) * SLICE
                else:
                    running = scratch + (2 * g + DEPTH % 2) * SLICE
                acc = accumulate_taps(
                    acc=acc,
                    x_ptr=scratch + 2 * g * SLICE if PAIRED else running,
                    w_ptr=w_last + weights_before(TAPS, branch=g, SIZE=C * C),
                    o_r=o_t - reach,
                    lo=tl.maximum(lo, -reach),
                    hi=tl.minimum(hi, end + reach),
                    o_n=o_n,
                    first=0,
                    last=taps,
                    taps=taps,
                    dilation=dilation,
                    stride_c=0,
                    N=C,
                    C=C,
                    SLOPE=1.0 if PAIRED else SLOPE,
                    CHANNELS_FIRST=False,
                    TILE=TILE,
                )
                bias = tl.load(b_last + g * C + o_n, mask=o_n < C, other=0.0)
                acc += bias.to(tl.float32)[None, :]
            for g in tl.static_range(BRANCHES):
                if DEPTH == 1:
                    running = x
                else:
                    running = scratch + (2 * g + (1 if PAIRED else DEPTH % 2)) * SLICE
                acc += tl.load(running + offset, mask=mask, other=0.0).to(tl.float32)
            p_out = out_ptr + (b * T + first_row) * C + offset
            tl.store(p_out, (acc * scale).to(out_ptr.dtype.element_ty), mask=mask)
        tl.debug_barrier()  # the next strip writes what this one read


def mrf_strip(
    x: Tensor,
    weights: Tensor,
    biases: Tensor,
    taps: tuple[int, ...],
    dilations: tuple[tuple[int, ...], ...],
    lengths: Tensor | None = None,
    rows_per_frame: int = 1,
    *,
    paired: bool,
    slope: float,
    config: StripConfig,
) -> Tensor:
    """Launch a whole level: the mean of its residual blocks.

    Args:
        x: (B, T, C).
        weights: of each step, (C, taps, C) of each branch, one after another in one dimension.
        biases: (steps, G, C).
        taps: of each branch.
        dilations: of each branch, equally many.
        lengths, rows_per_frame: as in `conv`.
        paired: residual blocks of type "1", where a second convolution follows each dilated one.
        slope: of every leaky_relu.
        config: what `strip_config` gives.

    Returns:
        (B, T, C).

    Raises:
        ValueError: the programs of `config` need more scratch than MOST_SCRATCH.
    """
    batch, rows, channels = x.shape
    out = torch.empty_like(x)
    programs = min(config.programs, batch * ceil_div(rows, config.length))
    if programs:
        reach = reaches(taps, dilations, paired)
        launched = dataclasses.replace(config, programs=programs)
        scratch = scratch_bytes(x, taps, dilations, paired, launched)
        if scratch > MOST_SCRATCH:
            raise ValueError(
                f"config: expected at most {MOST_SCRATCH:,} bytes of scratch, got {scratch:,}: "
                f"{programs:,} programs, strips of {config.length:,} rows"
            )
        start(
            _mrf_strip_kernel,
            programs,
            x,
            x_ptr=x,
            w_ptr=weights,
            b_ptr=biases,
            out_ptr=out,
            scratch_ptr=x.new_empty(scratch // x.element_size()),
            lengths_ptr=lengths,
            B=batch,
            T=rows,
            rows_per_frame=rows_per_frame,
            scale=1 / len(taps),
            C=channels,
            TAPS=taps,
            DILATIONS=sum(dilations, ()),
            REACH=sum(reach, ()),
            HALO=strip_halo(taps, dilations, paired),
            LENGTH=config.length,
            PAIRED=paired,
            SLOPE=slope,
            TILE=config.conv.tile(dot_precision(x)),
            num_warps=config.conv.num_warps,
            maxnreg=MAX_REGISTERS,
            enable_fp_fusion=True,
        )
    return out
