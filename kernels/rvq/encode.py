"""Fused RVQ encoding: projection, nearest code and residual of every codebook in one launch.

SoundStream (Zeghidour et al., 2021), algorithm 1. A program keeps a tile of frames on chip: it
projects them once, streams each codebook past them in tiles, gathers the winners, subtracts them
and goes on to the next codebook. Device memory sees each frame once, each code once and the
weights; the projected frames, the residuals and the scores never leave the chip.

Scores come from tensor cores in low precision, each with a bound of its error (`certificate.py`).
A row with one candidate within the bounds is done. Rows with more, a few of a tile, are taken one
at a time: two candidates are compared in float32 differences (or the first of two equal ones is
taken), and what is still in doubt is measured against the whole codebook, in float32 differences,
and where those are too close in float64. All of it happens in the tile, so there is no list of
rows, no second launch and no synchronisation. A row that is not finite has no distances: it gets
code 0.
"""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import launch
from ..launch import MAX_REGISTERS, ceil_div, power_of_two, row_stride, start
from ..tf32 import round_to_tf32
from . import certificate
from .configs import ENCODE, EncodeConfig
from .nearest import apart, nearer_of_two, nearest_in_float32, nearest_in_float64
from .search import lost, lowest_bounds, proof_limit
from .squares import sum_of_squares
from .table import search_table

FLUSH = tl.constexpr(certificate.FLUSH)


# Compiled anew for each Q, the model's own, and for whether 16 divides the stride of rows, which
# then are loaded in wide pieces; but not for each N, or every length of a stream would compile.
@triton.jit(do_not_specialize=["N"])
def _rvq_encode_kernel(
    x_ptr,  # (N, M), rows stride_xn apart
    weight_ptr,  # (D, M), or None
    bias_ptr,  # (D), or None
    codebooks_ptr,  # (Q, K, D)
    table_ptr,  # (Q, 2, K, W)
    codes_ptr,  # (N, Q) int64
    sums_ptr,  # (programs, Q), or None
    nonfinite_ptr,  # (1) int32: how many rows are not finite
    N,
    Q,
    stride_xn,
    M: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PROOF: tl.constexpr,  # of `certificate.KernelProof`
    BLOCK_BITS: tl.constexpr,
    EXACT: tl.constexpr,
):
    W: tl.constexpr = (D + 7) // 4 * 4  # table_width(D)
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
            residual = tl.dot(x.to(tl.float32), weight, residual, input_precision="tf32x3")
        if bias_ptr is not None:
            residual += tl.load(bias_ptr + o_d, mask=o_d < D, other=0.0)[None, :]

    for q in tl.range(0, Q):
        codebook_ptr = codebooks_ptr + tl.cast(q, tl.int64) * (K * D)
        words_ptr = table_ptr + (2 * tl.cast(q, tl.int64) + 1) * (K * W)
        squares = sum_of_squares(residual, 1)
        bad = m_n & ((squares < float("inf")) == 0)  # true for NaN
        if tl.max(bad.to(tl.int32), 0) > 0:
            # Not where a square alone overflowed: infinity times zero is NaN.
            bad = bad & ((tl.sum(residual * 0.0, 1) == 0) == 0)
            if q == 0:
                tl.atomic_add(nonfinite_ptr, tl.sum(bad.to(tl.int32), 0))

        norm = tl.sqrt(squares + BLOCK_D * FLUSH)  # with what may have underflowed
        rough = round_to_tf32(residual)
        reach = PROOF[0] * norm + PROOF[1] * lost(residual, rough)
        s1, i1, s2, i2, s3 = lowest_bounds(
            rough,
            reach,
            words_ptr,
            o_d=o_d,
            K=K,
            D=D,
            W=W,
            BLOCK_K=BLOCK_K,
            PROOF=PROOF,
            BLOCK_BITS=BLOCK_BITS,
            EXACT=EXACT,
        )
        if EXACT:
            limit = proof_limit(s1, i1, norm, reach, words_ptr, K=K, W=W, PROOF=PROOF)
            doubt = m_n & (bad == 0) & ((s2 > limit) == 0)  # true for NaN
            # One row at a time: few are in doubt, and differences of a whole tile would spill.
            left = tl.where(doubt, o_row, -1)
            row = tl.max(left, 0)
            while row >= 0:
                here = o_row == row
                doubtful = tl.sum(tl.where(here[:, None], residual, 0.0), 0)  # [BLOCK_D]
                nearest, settled = nearer_of_two(
                    doubtful,
                    codebook_ptr,
                    code=tl.sum(tl.where(here, i1, 0), 0),
                    other=tl.sum(tl.where(here, i2, 0), 0),
                    o_d=o_d,
                    D=D,
                )
                two = tl.max((here & (s3 > limit)).to(tl.int32), 0) > 0
                if (two & settled) == 0:
                    # Three candidates or more, or too close: the whole codebook.
                    nearest, least, next_least = nearest_in_float32(
                        doubtful, codebook_ptr, o_d=o_d, K=K, D=D, BLOCK_S=BLOCK_S
                    )
                    if apart(least, next_least, D=D) == 0:
                        nearest = nearest_in_float64(
                            doubtful, codebook_ptr, o_d=o_d, K=K, D=D, BLOCK_S=BLOCK_S
                        )
                i1 = tl.where(here, nearest, i1)
                left = tl.where(here, -1, left)
                row = tl.max(left, 0)
        i1 = tl.where(bad, 0, i1)

        tl.store(codes_ptr + o_n * Q + q, i1.to(tl.int64), mask=m_n)
        if (q + 1 < Q) or (sums_ptr is not None):
            residual -= tl.load(
                codebook_ptr + i1[:, None] * D + o_d[None, :], mask=o_d[None, :] < D, other=0.0
            )
        if sums_ptr is not None:
            rest = tl.sum(tl.where(m_n, sum_of_squares(residual, 1), 0.0), 0)
            tl.store(sums_ptr + tl.program_id(0) * Q + q, rest)


def rvq_encode(
    mel: Tensor,
    codebooks: Tensor | Sequence[Tensor],
    table: Tensor | None,
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
        codebooks: (Q, K, D) float32; in a list alone, or as Q of (K, D), which are copied.
        table: (Q, 2, K, W), what `search_table` gives, or None.
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
    if not isinstance(codebooks, Tensor):
        codebooks = codebooks[0] if codebooks[0].ndim == 3 else torch.stack(list(codebooks))
    n_codebooks, size, dim = codebooks.shape
    rows, n_mels = mel.shape
    config = config or ENCODE[launch.architecture(mel.device), power_of_two(dim)]
    mel = mel if mel.stride(1) == 1 else mel.contiguous()
    codebooks = codebooks.contiguous()
    programs = ceil_div(rows, config.block_n)
    codes = torch.empty(rows, n_codebooks, dtype=torch.int64, device=mel.device)
    sums = codebooks.new_empty(programs, n_codebooks) if with_sums else None
    if rows > 0:
        if table is None:
            table = search_table(codebooks, mark_repeats=False)
        start(
            _rvq_encode_kernel,
            programs,
            mel,
            x_ptr=mel,
            weight_ptr=None if weight is None else weight.contiguous(),
            bias_ptr=None if bias is None else bias.contiguous(),
            codebooks_ptr=codebooks,
            table_ptr=table.contiguous(),
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
    block_k = min(config.block_k, power_of_two(size))
    block_bits = (ceil_div(size, block_k) - 1).bit_length()
    return {
        "M": n_mels,
        "K": size,
        "D": dim,
        "BLOCK_N": config.block_n,
        "BLOCK_M": config.block_m,
        "BLOCK_K": block_k,
        "BLOCK_D": power_of_two(dim),
        "BLOCK_S": config.block_s,
        "PROOF": tuple(certificate.kernel_proof(dim, block_bits)),
        "BLOCK_BITS": block_bits,
        "EXACT": exact,
    }
