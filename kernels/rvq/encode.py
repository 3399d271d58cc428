"""Fused RVQ encoding: projection, nearest code and residual of every codebook in one launch.

SoundStream (Zeghidour et al., 2021), algorithm 1. A program keeps a tile of frames on chip: it
projects them once, streams each codebook past them in tiles, gathers the winners, subtracts them
and goes on to the next codebook. Device memory sees each frame once, each code once and the
weights; the projected frames, the residuals and the scores never leave the chip.

Scores come from tensor cores in low precision. `certificate.py` bounds their error: a row with one
candidate within the bound is done, a row with two compares them in float32 differences (or takes
the first of two equal ones), and a row that is still in doubt is measured against the whole
codebook in float64, one at a time. All of it happens in the tile, so there is no list of rows, no
second launch and no synchronisation. A row that is not finite has no distances: it gets code 0.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..launch import MAX_REGISTERS, power_of_two, row_stride
from . import certificate
from .configs import ENCODE, EncodeConfig
from .nearest import (
    codewords,
    dot,
    equal,
    merge_lowest,
    nearest_in_float64,
    three_lowest,
)

FLUSH = tl.constexpr(certificate.FLUSH)
UNDERFLOW = tl.constexpr(certificate.UNDERFLOW)


# Compiled anew for each Q, the model's own, and for whether 16 divides the stride of rows, which
# then are loaded in wide pieces; but not for each N, or every length of a stream would compile.
@triton.jit(do_not_specialize=["N"])
def _rvq_encode_kernel(
    x_ptr,  # (N, M), rows stride_xn apart
    weight_ptr,  # (D, M), or None
    bias_ptr,  # (D), or None
    codebooks_ptr,  # (Q, K, D)
    half_norms_ptr,  # (Q, K)
    codes_ptr,  # (N, Q) int64
    sums_ptr,  # (programs, Q), or None
    nonfinite_ptr,  # (1) int32: how many rows are not finite
    N,
    Q,
    stride_xn,
    M: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    BETA: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr,
    EXACT: tl.constexpr,
):
    o_row = tl.arange(0, BLOCK_N)
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + o_row
    o_d = tl.arange(0, BLOCK_D)
    m_n = o_n < N
    p_x = x_ptr + o_n[:, None] * stride_xn

    if weight_ptr is None:
        x = tl.load(p_x + o_d[None, :], mask=m_n[:, None] & (o_d[None, :] < D), other=0.0)
        residual = x.to(tl.float32)  # [BLOCK_N, BLOCK_D]
    else:
        residual = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        for m in tl.range(0, M, BLOCK_M):
            o_m = m + tl.arange(0, BLOCK_M)
            x = tl.load(p_x + o_m[None, :], mask=m_n[:, None] & (o_m[None, :] < M), other=0.0)
            weight = tl.load(
                weight_ptr + o_d[None, :] * M + o_m[:, None],
                mask=(o_d[None, :] < D) & (o_m[:, None] < M),
                other=0.0,
            )
            residual = dot(x.to(tl.float32), weight, residual, PRECISION="tf32x3")
        if bias_ptr is not None:
            residual += tl.load(bias_ptr + o_d, mask=o_d < D, other=0.0)[None, :]

    for q in tl.range(0, Q):
        codebook_ptr = codebooks_ptr + q * (K * D)
        inf = tl.full([BLOCK_N], float("inf"), tl.float32)
        zero = tl.zeros([BLOCK_N], tl.int32)
        s1, i1, s2, i2, s3 = inf, zero, inf, zero, inf
        largest = 0.0  # half-norm
        for k in tl.range(0, K, BLOCK_K):
            o_k = k + tl.arange(0, BLOCK_K)
            words = tl.load(
                codebook_ptr + o_k[None, :] * D + o_d[:, None],
                mask=(o_k[None, :] < K) & (o_d[:, None] < D),
                other=0.0,
            )  # [BLOCK_D, BLOCK_K]
            half_norm = tl.load(half_norms_ptr + q * K + o_k, mask=o_k < K, other=float("inf"))
            largest = tl.maximum(largest, tl.max(tl.where(o_k < K, half_norm, 0.0), 0))
            product = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
            scores = half_norm[None, :] - dot(residual, words, product, PRECISION=PRECISION)
            t1, j1, t2, j2, t3 = three_lowest(scores, o_k)
            s1, i1, s2, i2, s3 = merge_lowest(
                a1=s1, i1=i1, a2=s2, i2=i2, a3=s3, b1=t1, j1=j1, b2=t2, j2=j2, b3=t3
            )

        squares = tl.sum(residual * residual, 1)
        bad = m_n & ((squares < float("inf")) == 0)  # true for NaN
        if tl.max(bad.to(tl.int32), 0) > 0:
            # Not where a square alone overflowed: infinity times zero is NaN.
            bad = bad & ((tl.sum(residual * 0.0, 1) == 0) == 0)
            i1 = tl.where(bad, 0, i1)
            if q == 0:
                tl.atomic_add(nonfinite_ptr, tl.sum(bad.to(tl.int32), 0))

        if EXACT:
            # Norms with what may have underflowed; then twice the bound E.
            norm = tl.sqrt(squares + BLOCK_D * FLUSH)
            radius = tl.sqrt(2 * largest + BLOCK_D * FLUSH)
            bound = radius * (1.001 * (BETA + 2.0**-23)) * (2 * norm)
            bound += 2.0**-23 * 1.001 * radius * radius
            bound += (2 * BLOCK_D * FLUSH) * (1 + norm + radius)
            doubt = m_n & (bad == 0) & ((s2 - s1 > bound) == 0)  # true for NaN
            if tl.max(doubt.to(tl.int32), 0) > 0:
                # Two candidates: compare them alone, if float32 can tell.
                difference = codewords(codebook_ptr, codes=i1, o_d=o_d, D=D) - residual
                d1 = tl.sum(difference * difference, 1)
                difference = codewords(codebook_ptr, codes=i2, o_d=o_d, D=D) - residual
                d2 = tl.sum(difference * difference, 1)
                apart = tl.abs(d1 - d2) > (D + 2) * 2.0**-24 * (d1 + d2)
                two = doubt & (s3 - s1 > bound)
                settled = two & apart & (tl.maximum(d1, d2) > UNDERFLOW)
                i1 = tl.where(settled & (d2 < d1), i2, i1)
                if tl.max((two & (settled == 0)).to(tl.int32), 0) > 0:
                    same = two & equal(codebook_ptr, codes=i1, others=i2, D=D)
                    i1 = tl.where(same, tl.minimum(i1, i2), i1)
                    settled = settled | same
                # Three or more, or too close: the whole codebook in float64, row by row.
                left = tl.where(doubt & (settled == 0), o_row, -1)
                row = tl.max(left, 0)
                while row >= 0:
                    doubtful = tl.sum(tl.where(o_row[:, None] == row, residual, 0.0), 0)
                    code = nearest_in_float64(
                        doubtful, codebook_ptr, o_d=o_d, K=K, D=D, BLOCK_S=BLOCK_S
                    )
                    i1 = tl.where(o_row == row, code, i1)
                    left = tl.where(o_row == row, -1, left)
                    row = tl.max(left, 0)

        tl.store(codes_ptr + o_n * Q + q, i1.to(tl.int64), mask=m_n)
        if (q + 1 < Q) or (sums_ptr is not None):
            residual -= codewords(codebook_ptr, codes=i1, o_d=o_d, D=D)
        if sums_ptr is not None:
            rest = tl.sum(tl.where(m_n, tl.sum(residual * residual, 1), 0.0), 0)
            tl.store(sums_ptr + tl.program_id(0) * Q + q, rest)


def rvq_encode(
    mel: Tensor,
    codebooks: Tensor,
    half_norms: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    nonfinite: Tensor,
    *,
    exact: bool = True,
    with_sums: bool = False,
    config: EncodeConfig | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Launch the encoder; all tensors on one device.

    Args:
        mel: (N, n_mels) float32, bfloat16 or float16.
        codebooks: (Q, K, D) float32.
        half_norms: (Q, K), what `half_norms_of` gives, or None.
        weight: (D, n_mels) float32, or None when n_mels == D.
        bias: (D,) float32, or None.
        nonfinite: one int32, raised by the number of rows with a NaN or an infinity.
        exact: certify codes; otherwise take the lowest score as it is.
        with_sums: also return the residuals' sums of squares, which training's losses need.
        config: of the table's own for these shapes if None.

    Returns:
        codes (N, Q) int64, and (Q,) float32 sums over all rows of what each codebook leaves, or
        None.
    """
    n_codebooks, size, dim = codebooks.shape
    rows, n_mels = mel.shape
    config = config or ENCODE[launch.architecture(mel.device), power_of_two(dim)]
    mel = mel if mel.stride(1) == 1 else mel.contiguous()
    codebooks = codebooks.contiguous()
    programs = triton.cdiv(rows, config.block_n)
    codes = torch.empty(rows, n_codebooks, dtype=torch.int64, device=mel.device)
    sums = codebooks.new_empty(programs, n_codebooks) if with_sums else None
    if rows > 0:
        half_norms = half_norms_of(codebooks) if half_norms is None else half_norms
        with torch.cuda.device_of(mel):
            _rvq_encode_kernel[(programs,)](
                x_ptr=mel,
                weight_ptr=None if weight is None else weight.contiguous(),
                bias_ptr=None if bias is None else bias.contiguous(),
                codebooks_ptr=codebooks,
                half_norms_ptr=half_norms.contiguous(),
                codes_ptr=codes,
                sums_ptr=sums,
                nonfinite_ptr=nonfinite,
                N=rows,
                Q=n_codebooks,
                stride_xn=row_stride(mel),
                **encode_constants(n_mels, size, dim, exact, config),
                num_warps=config.num_warps,
                num_stages=config.num_stages,
                maxnreg=MAX_REGISTERS,
                enable_fp_fusion=True,
            )
    return codes, None if sums is None else sums.sum(0)


@functools.cache
def encode_constants(
    n_mels: int, size: int, dim: int, exact: bool, config: EncodeConfig
) -> dict[str, object]:
    """The kernel's compile-time arguments."""
    return {
        "M": n_mels,
        "K": size,
        "D": dim,
        "BETA": certificate.score_beta(dim, config.precision),
        "BLOCK_N": config.block_n,
        "BLOCK_M": config.block_m,
        "BLOCK_K": min(config.block_k, power_of_two(size)),
        "BLOCK_D": power_of_two(dim),
        "BLOCK_S": config.block_s,
        "PRECISION": config.precision,
        "EXACT": exact,
    }


# Half the squared norm of every codeword, which scores start from. From float64 sums: the error of
# float32 ones would exceed what the certificate allows for.
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


def half_norms_of(codebooks: Tensor) -> Tensor:
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
