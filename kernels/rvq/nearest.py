"""What the encoder's search is made of: the lowest scores of a row, and distances in float64 where
scores do not decide.
"""

import triton
import triton.language as tl


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr):
    return tl.dot(a, b, accumulator, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def three_lowest(scores, o_k):
    """Lowest score of each row and its code, the second and its code, the third's score."""
    first = tl.min(scores, 1)
    code = tl.min(tl.where(scores == first[:, None], o_k[None, :], 0x7FFFFFFF), 1)
    rest = tl.where(o_k[None, :] == code[:, None], float("inf"), scores)
    second = tl.min(rest, 1)
    second_code = tl.min(tl.where(rest == second[:, None], o_k[None, :], 0x7FFFFFFF), 1)
    rest = tl.where(o_k[None, :] == second_code[:, None], float("inf"), rest)
    return first, code, second, second_code, tl.min(rest, 1)


@triton.jit
def merge_lowest(a1, i1, a2, i2, a3, b1, j1, b2, j2, b3):
    """Merge two results of `three_lowest`; the first wins a tie."""
    lower = b1 < a1
    first, code = tl.where(lower, b1, a1), tl.where(lower, j1, i1)
    loser, loser_code = tl.where(lower, a1, b1), tl.where(lower, i1, j1)
    loser_second = tl.where(lower, a2, b2)
    second, second_code = tl.where(lower, b2, a2), tl.where(lower, j2, i2)
    third = tl.where(lower, b3, a3)
    beaten = loser < second
    third = tl.where(beaten, tl.minimum(second, loser_second), tl.minimum(loser, third))
    second_code = tl.where(beaten, loser_code, second_code)
    return first, code, tl.where(beaten, loser, second), second_code, third


@triton.jit
def codewords(codebook_ptr, codes, o_d, D: tl.constexpr):
    return tl.load(
        codebook_ptr + codes[:, None] * D + o_d[None, :], mask=o_d[None, :] < D, other=0.0
    )  # [len(codes), BLOCK_D]


@triton.jit
def equal(codebook_ptr, codes, others, D: tl.constexpr):
    """Whether two codewords of each row are the same. Element by element: whole ones would spill,
    and it is rarely asked."""
    unlike = tl.zeros_like(codes)
    for d in tl.range(0, D):
        differ = tl.load(codebook_ptr + codes * D + d) != tl.load(codebook_ptr + others * D + d)
        unlike += differ.to(tl.int32)
    return unlike == 0


@triton.jit
def _float64_distances(row, codebook_ptr, o_k, o_d, K: tl.constexpr, D: tl.constexpr):
    words = tl.load(
        codebook_ptr + o_k[:, None] * D + o_d[None, :],
        mask=(o_k[:, None] < K) & (o_d[None, :] < D),
        other=0.0,
    )
    difference = words.to(tl.float64) - row.to(tl.float64)[None, :]
    distance = tl.sum(difference * difference, 1)
    return tl.where(o_k < K, distance, float("inf"))  # [BLOCK_S]


@triton.jit
def nearest_in_float64(
    row, codebook_ptr, o_d, K: tl.constexpr, D: tl.constexpr, BLOCK_S: tl.constexpr
):
    """The lowest index of the smallest distance of one row [BLOCK_D], which is finite."""
    best = tl.full([], float("inf"), tl.float64)
    for k in tl.range(0, K, BLOCK_S):
        o_k = k + tl.arange(0, BLOCK_S)
        distance = _float64_distances(row, codebook_ptr, o_k=o_k, o_d=o_d, K=K, D=D)
        best = tl.minimum(best, tl.min(distance, 0))
    code = tl.full([], K, tl.int32)
    limit = best * (1 + (D + 2) * 2.0**-52)  # closer than this counts as tied
    for k in tl.range(0, K, BLOCK_S):
        o_k = k + tl.arange(0, BLOCK_S)
        distance = _float64_distances(row, codebook_ptr, o_k=o_k, o_d=o_d, K=K, D=D)
        code = tl.minimum(code, tl.min(tl.where(distance <= limit, o_k, K), 0))
    return tl.where(code < K, code, 0)  # a codebook of NaN has no nearest
