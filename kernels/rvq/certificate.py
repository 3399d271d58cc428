"""When a low-precision score proves which codeword is nearest.

The search compares h_k = ||c_k||^2 / 2 - x.c_k, which is half the squared distance less a term that
all k share. Computed with operands rounded to u and sums that err by a, every h_k is within

    E = beta ||x|| C + 2^-23 (C^2 / 2 + ||x|| C) + tiny,    beta = 2u + u^2 + a,  C = max_k ||c_k||

of its value in real arithmetic (Cauchy-Schwarz on the products; the second term is the rounding of
the half-norm and of the difference; tiny is what underflow can lose). So a code whose score exceeds
the smallest by more than 2E cannot be the nearest. The sums of tensor cores are bounded as if every
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


def projection_error(n_mels: int, precision: str) -> float:
    """Bound of ||dz|| / || |W| |mel| + |b| ||, z = W mel + b in float32 or three tf32 products.

    Raises:
        ValueError: another precision than "ieee" or "tf32x3".
    """
    if precision not in ("ieee", "tf32x3"):
        raise ValueError(f'precision: expected "ieee" or "tf32x3", got {precision!r}')
    return (n_mels + 1) * 2.0**-24 if precision == "ieee" else score_beta(n_mels, "tf32x3")
