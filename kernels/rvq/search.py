"""The encoder's search of one codebook by scores: the lowest bounds of a row, and what they prove.

`table.py` says what scores are taken of, `certificate.py` why the bounds hold.
"""

import triton
import triton.language as tl


@triton.jit
def dot(a, b, accumulator, PRECISION: tl.constexpr):
    return tl.dot(a, b, accumulator, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def three_lowest(bounds, o_k):
    """Lowest bound of each row and its code, the second and its code, the third's bound."""
    first = tl.min(bounds, 1)
    code = tl.min(tl.where(bounds == first[:, None], o_k[None, :], 0x7FFFFFFF), 1)
    rest = tl.where(o_k[None, :] == code[:, None], float("inf"), bounds)
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
def lowest_bounds(
    residual,  # [BLOCK_N, BLOCK_D]
    norm,  # [BLOCK_N], at least ||residual||
    table_ptr,  # (K, W)
    o_d,
    K: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    PROOF: tl.constexpr,
    EXACT: tl.constexpr,
):
    """The three lowest of what each row's scores are at least, as `three_lowest` has them; of the
    scores as they are unless EXACT."""
    inf = tl.full([residual.shape[0]], float("inf"), tl.float32)
    zero = tl.zeros([residual.shape[0]], tl.int32)
    s1, i1, s2, i2, s3 = inf, zero, inf, zero, inf
    for k in tl.range(0, K, BLOCK_K):
        o_k = k + tl.arange(0, BLOCK_K)
        m_k = o_k < K
        words = tl.load(
            table_ptr + o_k[None, :] * W + o_d[:, None],
            mask=m_k[None, :] & (o_d[:, None] < D),
            other=0.0,
        )  # [BLOCK_D, BLOCK_K]
        bias = tl.load(table_ptr + o_k * W + D, mask=m_k, other=0.0)
        if EXACT:
            # What size has besides |bias| is the same for all codes: only the limit needs it.
            bias -= PROOF[2] * tl.abs(bias)
        least = tl.where(m_k, bias, float("inf"))
        product = tl.zeros([residual.shape[0], BLOCK_K], tl.float32)
        bounds = dot(residual, words, product, PRECISION=PRECISION) + least[None, :]
        if EXACT:
            # A radius of minus infinity, of codewords that repeat others, makes them infinite.
            radius = tl.load(table_ptr + o_k * W + (D + 1), mask=m_k, other=0.0)
            bounds -= (PROOF[0] * norm)[:, None] * radius[None, :]
        t1, j1, t2, j2, t3 = three_lowest(bounds, o_k)
        s1, i1, s2, i2, s3 = merge_lowest(
            a1=s1, i1=i1, a2=s2, i2=i2, a3=s3, b1=t1, j1=j1, b2=t2, j2=j2, b3=t3
        )
    return s1, i1, s2, i2, s3


@triton.jit
def proof_limit(
    s1,
    i1,
    norm,
    table_ptr,
    D: tl.constexpr,
    W: tl.constexpr,
    PROOF: tl.constexpr,
):
    """What the bounds of all other codes must exceed for i1, of bound s1, to be the nearest."""
    p_bias = table_ptr + i1 * W + D
    ties = (PROOF[4] * norm) * (norm * tl.load(p_bias + 3))
    return s1 + ((PROOF[1] * norm) * tl.load(p_bias + 1) + PROOF[3] * tl.load(p_bias + 2) + ties)
