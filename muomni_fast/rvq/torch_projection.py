"""A projection that is nearly the exact one, and how near.

Codes are those of the exact projection (`reference.rvq.projection`), every number of which is
rounded rightly. To know that of all of them costs as much again as their sums; but rows whose
numbers may be off by a rounding or two mostly have the same codes. If a row is known to within
`off`, its scores err by off radius_k more than those of a row that is known:

    E_k = beta (||x|| radius_k + size_k) + off radius_k,

as if the row were longer by off / beta. So the search takes it for that long. Rows in doubt even so
are measured as they are; only where another codeword is nearly as near, to within twice `off`, is
the row projected exactly, and measured again.

Many rows are projected in float32 first. `off` is far larger then, and about one row in forty stays
in doubt; those are searched for again, projected in float64.
"""

import functools

import torch
from torch import Tensor

from ..kernels.rvq.certificate import FLUSH, MARGIN
from ..reference.rvq.projection import ROWS

LEAST_OFF = 2.0**-110  # what underflow can lose
# Against a row's length: what rounding its numbers to float32 can change, here and in the exact
# one; and of what is left of it, what subtracting the same codeword from both can.
ROUNDED = 2.0**-22
# Norms of so many numbers take float32 half of float64's time; it is sure of rows up to so long.
NUMBERS_FOR_FLOAT32 = 1 << 15
MOST_TERMS = 1 << 12
LEAST_NORM, MOST_NORM = 2.0**-30, 2.0**60


def near_projection(
    rows: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, dtype: torch.dtype
) -> Tensor:
    """Write weight . frame + bias to `out`.

    Args:
        rows: (n, n_mels) float32 or half precision.
        weight: (D, n_mels) float32.
        bias: (D,) float32, or None.
        out: (n, D) float32.
        dtype: of the sums, torch.float32 only where the precision of products is "ieee".

    Returns:
        (n,) float64, positive: with ROUNDED times its length, how far each row of `out` may be from
        what `project` gives; NaN or infinite where it tells nothing.
    """
    dim, terms = weight.shape
    columns, shift = weight.to(dtype).t(), None if bias is None else bias.to(dtype)
    if dtype == torch.float32:
        _product(rows.float(), columns, shift, out)
    else:
        for start in range(0, len(rows), ROWS):
            frames = rows[start : start + ROWS].double()
            out[start : start + ROWS] = _product(frames, columns, shift)
    # In any order of summation; Cauchy-Schwarz on each sum, then on all of a frame.
    error = MARGIN * (terms + 2) * torch.finfo(dtype).eps / 2
    # What flushing loses: of a row's numbers and of the weights', times the others; of products,
    # sums and the bias, by themselves.
    lost = FLUSH * terms * dim**0.5
    norm = functools.partial(torch.linalg.vector_norm, dtype=torch.float64)
    length = float(norm(columns))
    least = LEAST_OFF + lost * (3 + length)
    if bias is not None:
        least += error * float(norm(bias))
    return row_norms(rows).mul_(error * length + lost).add_(least)


def row_norms(x: Tensor) -> Tensor:
    """Of x (n, m): (n,) float64, to within a thousandth."""
    if x.dtype == torch.float32 and x.numel() >= NUMBERS_FOR_FLOAT32 and x.shape[1] <= MOST_TERMS:
        norms = torch.linalg.vector_norm(x, dim=1)
        low, high = norms.aminmax()
        if low > LEAST_NORM and high < MOST_NORM:  # no square has underflowed, nor overflowed
            return norms.double()
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)


def _product(x: Tensor, columns: Tensor, shift: Tensor | None, out: Tensor | None = None) -> Tensor:
    if shift is None:
        return torch.mm(x, columns, out=out)
    return torch.addmm(shift, x, columns, out=out)
