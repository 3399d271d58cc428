"""Sums of squares of rows."""

import triton
import triton.language as tl


@triton.jit
def sum_of_squares(x, axis: tl.constexpr):
    """The sum of x * x along an axis, the same in every lane that holds it.

    The compiler would fuse a square with the first addition across lanes. Of two lanes each then
    rounds the other's square but not its own, so that they differ in the last bit, and a branch on
    the sum, which all lanes must take alike, could part them. It does not fuse what is fused
    already.
    """
    return tl.sum(tl.fma(x, x, 0.0), axis)
