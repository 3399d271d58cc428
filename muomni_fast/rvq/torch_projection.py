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
MOST_TERMS = 1 << 12  # float32's norm of a longer row may be off by more than a thousandth
LEAST_NORM, MOST_NORM = 2.0**-30, 2.0**60  # beyond them squares may underflow or overflow float32


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
        frames = rows.float()
        if shift is None:
            torch.mm(frames, columns, out=out)
        else:
            torch.addmm(shift, frames, columns, out=out)
    else:
        for start in range(0, len(rows), ROWS):
            frames, into = rows[start : start + ROWS].double(), out[start : start + ROWS]
            into.copy_(frames @ columns if shift is None else torch.addmm(shift, frames, columns))
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
    norms = row_norms(rows) if dtype == torch.float32 else norm(rows, dim=1)
    return norms.mul_(error * length + lost).add_(least)


def row_norms(x: Tensor) -> Tensor:
    """Of x (n, m): (n,) float64, to within a thousandth, which MARGIN covers. Of many rows on a CPU
    in half of float64's time."""
    if x.shape[1] > MOST_TERMS or x.dtype != torch.float32 or x.device.type != "cpu":
        return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)
    norms = torch.linalg.vector_norm(x, dim=1).double()
    odd = ((norms > LEAST_NORM) & (norms < MOST_NORM)).logical_not_()  # so is NaN
    if odd.any():
        norms[odd] = torch.linalg.vector_norm(x[odd], dim=1, dtype=torch.float64)
    return norms
