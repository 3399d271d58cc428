"""The encoder's search of one codebook by scores: the lowest bounds of a row, and what they prove.

`table.py` says what scores are taken of, `certificate.py` why the bounds hold.

Codes are scored BLOCK_K at once. Each place of such a block keeps the three lowest bounds that it
has seen, with nothing but minima and maxima, and places are compared with each other once, at the
end. Which block a bound is of is written into its last bits, whose change `certificate.py` counts,
so that no number is kept beside it.
"""

import triton
import triton.language as tl

from . import certificate
from .squares import sum_of_squares

FLUSH = tl.constexpr(certificate.FLUSH)
# More than any bound, and finite: infinity with a block in its last bits would be NaN. Its own last
# bits are zero.
NONE = tl.constexpr(2.0**127)


@triton.jit
def lost(residual, rough):
    """Length of what rounding took from each row, [BLOCK_N]; multiplied so that little of it
    underflows."""
    rest = (residual - rough) * 2.0**11
    return tl.sqrt(sum_of_squares(rest, 1) + residual.shape[1] * FLUSH) * 2.0**-11


@triton.jit
def lowest_bounds(
    rough,  # [BLOCK_N, BLOCK_D], TF32 numbers
    reach,  # [BLOCK_N], what scores err by for each unit of radius
    table_ptr,  # K * W numbers, of `kernel_table`
    o_d,
    K: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PROOF: tl.constexpr,
    BLOCK_BITS: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Of what each row's scores are at least: the lowest and its code, the second and its code, the
    third. Of the scores as they are unless EXACT, and the first alone."""
    o_place = tl.arange(0, BLOCK_K)
    p_bias = table_ptr + K * (W - 4)
    s1 = tl.full([rough.shape[0], BLOCK_K], NONE, tl.float32)
    s2, s3 = s1, s1
    for block in tl.range(0, (K + BLOCK_K - 1) // BLOCK_K):
        o_k = block * BLOCK_K + o_place
        m_k = o_k < K
        words = tl.load(
            table_ptr + o_k[None, :] * (W - 4) + o_d[:, None],
            mask=m_k[None, :] & (o_d[:, None] < D),
            other=0.0,
        )  # [BLOCK_D, BLOCK_K]
        bias = tl.load(p_bias + o_k, mask=m_k, other=0.0)
        if EXACT:
            # What size has besides |bias| is the same for all codes: only the limit needs it.
            bias -= PROOF[2] * tl.abs(bias)
            radius = tl.load(p_bias + K + o_k, mask=m_k, other=0.0)
            m_k = m_k & (radius >= 0)  # a codeword that repeats another is never the answer
            least = tl.where(m_k, bias, NONE)[None, :]
            least -= reach[:, None] * tl.where(m_k, radius, 0.0)[None, :]
        else:
            least = tl.broadcast_to(tl.where(m_k, bias, NONE)[None, :], s1.shape)
        bounds = tl.dot(rough, words, least, input_precision="tf32")
        bits = bounds.to(tl.int32, bitcast=True) & -(1 << BLOCK_BITS)
        bounds = (bits | block).to(tl.float32, bitcast=True)
        if EXACT:
            loser = tl.maximum(s1, bounds)
            s3 = tl.minimum(s3, tl.maximum(s2, loser))
            s2 = tl.minimum(s2, loser)
        s1 = tl.minimum(s1, bounds)

    first = tl.min(s1, 1)
    place = tl.min(tl.where(s1 == first[:, None], o_place[None, :], BLOCK_K), 1)
    code = _code(first, place, K=K, BLOCK_K=BLOCK_K, BLOCK_BITS=BLOCK_BITS)
    if EXACT:
        here = o_place[None, :] == place[:, None]
        s1, s2 = tl.where(here, s2, s1), tl.where(here, s3, s2)
        second = tl.min(s1, 1)
        place = tl.min(tl.where(s1 == second[:, None], o_place[None, :], BLOCK_K), 1)
        second_code = _code(second, place, K=K, BLOCK_K=BLOCK_K, BLOCK_BITS=BLOCK_BITS)
        third = tl.min(tl.where(o_place[None, :] == place[:, None], s2, s1), 1)
    else:
        second, second_code, third = first, code, first
    return first, code, second, second_code, third


@triton.jit
def _code(bound, place, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_BITS: tl.constexpr):
    """The code of a bound at a place of its block; one that exists, whatever the bound is."""
    block = bound.to(tl.int32, bitcast=True) & ((1 << BLOCK_BITS) - 1)
    return tl.minimum(block * BLOCK_K + place, K - 1)


@triton.jit
def proof_limit(
    s1,
    i1,
    norm,  # [BLOCK_N], at least ||residual||
    reach,  # as `lowest_bounds` has it
    table_ptr,  # as there
    K: tl.constexpr,
    W: tl.constexpr,
    PROOF: tl.constexpr,
):
    """What the bounds of all other codes must exceed for i1, of bound s1, to be the nearest."""
    p_bias = table_ptr + K * (W - 4) + i1
    ties = (PROOF[4] * norm) * (norm * tl.load(p_bias + 3 * K))
    twice = 2.002 * reach + 2.0**-21 * norm
    return s1 + (twice * tl.load(p_bias + K) + PROOF[3] * tl.load(p_bias + 2 * K) + ties)
