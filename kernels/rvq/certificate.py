"""When a low-precision score proves which codeword is nearest.

The search compares scores (`table.py`), bias_k + x . word_k. Computed with operands rounded to u
and sums that err by a, each is within

    E_k = beta (||x|| radius_k + size_k),  beta = 2u + u^2 + a + 2^-22,

of its value in real arithmetic: Cauchy-Schwarz on the products, then the rounding of the word, of
the bias and of score - E itself; the table's radius and size cover underflow. So k can be the
nearest only if score_k - E_k <= score_j + E_j for every j. Each code has a bound of its own: a
codeword a thousand times as long as the others puts none of them in doubt.

The kernel multiplies operands that are TF32 numbers already. It knows the length of what each row
lost by rounding, and `table.py` that of words; so there

    E_k = lost radius_k + (2^-12 + a + b + 2^-22) ||x|| radius_k + (a + b + 2^-22) size_k,

less than a quarter of the above. It is b that writing a block's number into the last bits of
score - E changes of it; biases are not rounded.

The encoder looks for the lowest score - E. Its code j is the nearest if no other score - E reaches

    limit = (score_j - E_j) + 2 E_j + the limit's own rounding + scale ||x||^2 (D + 2) 2^-50.

The last term is for ties: distances that float64 cannot tell apart, to (D + 2) 2^-52 of themselves,
count as equal. The sums of tensor cores are bounded as if every addition truncated, twice over.
"""

import functools
from typing import NamedTuple

# Smallest normal float32: what a flushed product, square or operand may lose.
FLUSH = 2.0**-126
# Two per cent for ||x||, which may be off by a thousandth, and for the rounding of E itself, whose
# factors may be operands too.
MARGIN = 1.02
# What words lose by rounding to TF32, for each unit of radius: a little more than it is on average.
WORDS_LOST = 2.0**-12
# Below this a float32 squared distance may have lost terms to underflow.
UNDERFLOW = 2.0**-100


@functools.cache
def score_beta(dim: int, precision: str) -> float:
    """beta of a dot product of `dim` terms.

    Args:
        dim: codebook_dim.
        precision: "ieee" (float32, any order of sums), "tf32x3" (three products of split operands),
            "tf32" (truncated, as the compiler emits it) or "bf16" (operands rounded to bfloat16).

    Raises:
        ValueError: another precision.
    """
    rounding = {"ieee": 0.0, "tf32x3": 0.0, "tf32": 2.0**-10, "bf16": 2.0**-8}
    if precision not in rounding:
        raise ValueError(f"precision: expected one of {', '.join(rounding)}, got {precision!r}")
    u = rounding[precision]
    return 2 * u + u * u + sums_beta(dim, precision)


def sums_beta(dim: int, precision: str) -> float:
    """a of a dot product of `dim` terms, operands rounded as far as they will be; precisions as in
    `score_beta`."""
    return {
        "ieee": (dim + 4) * 2.0**-24,
        # Three accumulations; truncated splits leave up to 3 * 2^-20 of a product, well below.
        "tf32x3": 2 * 3 * (dim + 8) * 2.0**-23,
        "tf32": 2 * (dim + 8) * 2.0**-23,
        "bf16": 2 * (dim + 4) * 2.0**-23,
    }[precision]


class Proof(NamedTuple):
    """What proves a code the nearest: limit = lowest + twice (||x|| radius + size) + ties scale
    ||x||^2, of the lowest score - E and its code, for E of `beta`."""

    beta: float
    twice: float
    ties: float


@functools.cache
def proof(dim: int, precision: str) -> Proof:
    """Of scores in a precision.

    Raises:
        ValueError: as `score_beta`.
    """
    return _proof(dim, score_beta(dim + 4, precision))


class KernelProof(NamedTuple):
    """The same of the kernel: E = lost times what the row lost and radius, + beta ||x|| radius +
    biases size; the limit has `twice` biases."""

    beta: float
    lost: float
    biases: float
    twice: float
    ties: float


@functools.cache
def kernel_proof(dim: int, block_bits: int) -> KernelProof:
    """Of the kernel's scores, whose biases are not rounded.

    Args:
        dim: codebook_dim.
        block_bits: last bits of score - E that are written over.
    """
    sums = sums_beta(dim + 4, "tf32") + 2.0 ** (block_bits - 23)
    return KernelProof(_proof(dim, WORDS_LOST + sums).beta, MARGIN, *_proof(dim, sums))


def _proof(dim: int, beta: float) -> Proof:
    beta = MARGIN * (beta + 2.0**-22)
    return Proof(beta, 2.002 * beta + 2.0**-21, (dim + 2) * 2.0**-50)


def projection_error(n_mels: int, precision: str) -> float:
    """Bound of ||dz|| / || |W| |mel| + |b| ||, z = W mel + b in float32 or three tf32 products.

    Raises:
        ValueError: another precision than "ieee" or "tf32x3".
    """
    if precision not in ("ieee", "tf32x3"):
        raise ValueError(f'precision: expected "ieee" or "tf32x3", got {precision!r}')
    return (n_mels + 1) * 2.0**-24 if precision == "ieee" else score_beta(n_mels, "tf32x3")
