"""When a low-precision score proves which codeword is nearest.

The search compares scores (`table.py`), bias_k + x . word_k. Computed with operands rounded to u
and sums that err by a, each is within

    E_k = beta (||x|| radius_k + size_k) + tiny,  beta = 2u + u^2 + a + 2^-22,  size_k >= |bias_k|,

of its value in real arithmetic: Cauchy-Schwarz on the products, then the rounding of the word, of
the bias and of score - E itself; tiny is what underflow can lose. (Where sums start from the bias,
which then is no rounded operand, as in the kernel, `bias_beta` will do for it.) So k can be the
nearest only if score_k - E_k <= score_j + E_j for every j. Each code has a bound of its own: a
codeword a thousand times as long as the others puts none of them in doubt.

The encoder looks for the lowest score - E. Its code j is the nearest if no other score - E reaches
score_j + E_j, with what is added for ties: distances that float64 cannot tell apart, to
(D + 2) 2^-52 of themselves, count as equal. Of a row and codewords that is in `tie_slack` and far
below E, of a centre far from zero in size. The sums of tensor cores are bounded as if every
addition truncated, twice over.
"""

import functools

# Smallest normal float32: what a flushed product, square or operand may lose.
FLUSH = 2.0**-126
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
    sums = {
        "ieee": (dim + 4) * 2.0**-24,
        # Three accumulations; truncated splits leave up to 3 * 2^-20 of a product, well below.
        "tf32x3": 2 * 3 * (dim + 8) * 2.0**-23,
        "tf32": 2 * (dim + 8) * 2.0**-23,
        "bf16": 2 * (dim + 4) * 2.0**-23,
    }[precision]
    return 2 * u + u * u + sums


def bound_beta(dim: int, precision: str) -> float:
    """beta of E; a per mille covers the rounding of ||x|| and of the bound itself.

    Raises:
        ValueError: as `score_beta`.
    """
    return 1.001 * (score_beta(dim + 4, precision) + 2.0**-22)


def bias_beta(dim: int) -> float:
    """beta of a bias that sums in any precision start from: only they round it."""
    return bound_beta(dim, "tf32x3")


def tie_slack(dim: int) -> float:
    """What ties add to a bound, of scale ||x||^2."""
    return (dim + 2) * 2.0**-50


def flush_slack(dim: int) -> float:
    """What underflow adds to a bound, of 1 + ||x||: of products, and of numbers of rows and words
    that are flushed before they are multiplied."""
    return 8 * dim * FLUSH


def projection_error(n_mels: int, precision: str) -> float:
    """Bound of ||dz|| / || |W| |mel| + |b| ||, z = W mel + b in float32 or three tf32 products.

    Raises:
        ValueError: another precision than "ieee" or "tf32x3".
    """
    if precision not in ("ieee", "tf32x3"):
        raise ValueError(f'precision: expected "ieee" or "tf32x3", got {precision!r}')
    return (n_mels + 1) * 2.0**-24 if precision == "ieee" else score_beta(n_mels, "tf32x3")
