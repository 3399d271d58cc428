"""Codewords themselves, where scores do not decide: compared, measured, in float32 and float64."""

import triton
import triton.language as tl

from . import certificate
from .squares import sum_of_squares

UNDERFLOW = tl.constexpr(certificate.UNDERFLOW)


@triton.jit
def nearer_of_two(row, codebook_ptr, code, other, o_d, D: tl.constexpr):
    """Of two codes, the one nearer to a row [BLOCK_D], and whether that is certain; the lower one
    of equal codewords."""
    word = tl.load(codebook_ptr + code * D + o_d, mask=o_d < D, other=0.0)
    other_word = tl.load(codebook_ptr + other * D + o_d, mask=o_d < D, other=0.0)
    d1 = sum_of_squares(word - row, 0)
    d2 = sum_of_squares(other_word - row, 0)
    same = tl.max((word != other_word).to(tl.int32), 0) == 0
    nearer = tl.where(d2 < d1, other, code)
    return tl.where(same, tl.minimum(code, other), nearer), apart(d1, d2, D=D) | same


@triton.jit
def _distances(row, codebook_ptr, o_k, o_d, K: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr):
    words = tl.load(
        codebook_ptr + o_k[:, None] * D + o_d[None, :],
        mask=(o_k[:, None] < K) & (o_d[None, :] < D),
        other=0.0,
    )
    distance = sum_of_squares(words.to(DTYPE) - row.to(DTYPE)[None, :], 1)
    return tl.where(o_k < K, distance, float("inf"))  # [BLOCK_S]


@triton.jit
def nearest_in_float32(
    row, codebook_ptr, o_d, K: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr
):
    """The code of the smallest distance of one row [BLOCK_D], the distance, and the second's."""
    best = tl.full([], float("inf"), tl.float32)
    second = best
    code = tl.full([], 0, tl.int32)
    for k in tl.range(0, K, BLOCK_S):
        o_k = k + tl.arange(0, BLOCK_S)
        distance = _distances(row, codebook_ptr, o_k=o_k, o_d=o_d, K=K, D=D, DTYPE=tl.float32)
        lowest = tl.min(distance, 0)
        here = tl.min(tl.where(distance == lowest, o_k, K), 0)
        others = tl.min(tl.where(o_k == here, float("inf"), distance), 0)
        second = tl.minimum(tl.maximum(best, lowest), tl.minimum(second, others))
        code = tl.where(lowest < best, here, code)
        best = tl.minimum(best, lowest)
    return code, best, second


@triton.jit
def apart(d1, d2, D: tl.constexpr):
    """Whether float32 can tell two squared distances: each is within (D + 2) 2^-24 of itself."""
    return (tl.abs(d1 - d2) > (D + 2) * 2.0**-24 * (d1 + d2)) & (tl.maximum(d1, d2) > UNDERFLOW)


@triton.jit
def nearest_in_float64(
    row, codebook_ptr, o_d, K: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr
):
    """The lowest index of the smallest distance of one row [BLOCK_D], which is finite."""
    best = tl.full([], float("inf"), tl.float64)
    for k in tl.range(0, K, BLOCK_S):
        o_k = k + tl.arange(0, BLOCK_S)
        distance = _distances(row, codebook_ptr, o_k=o_k, o_d=o_d, K=K, D=D, DTYPE=tl.float64)
        best = tl.minimum(best, tl.min(distance, 0))
    code = tl.full([], K, tl.int32)
    limit = best * (1 + (D + 2) * 2.0**-52)  # closer than this counts as tied
    for k in tl.range(0, K, BLOCK_S):
        o_k = k + tl.arange(0, BLOCK_S)
        distance = _distances(row, codebook_ptr, o_k=o_k, o_d=o_d, K=K, D=D, DTYPE=tl.float64)
        code = tl.minimum(code, tl.min(tl.where(distance <= limit, o_k, K), 0))
    return tl.where(code < K, code, 0)  # a codebook of NaN has no nearest
