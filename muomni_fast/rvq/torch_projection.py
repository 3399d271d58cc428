"""A projection that is nearly the exact one, and how near.

Codes are those of the exact projection (`reference.rvq.projection`), every number of which is
rounded rightly. To know that of all of them costs as much again as their sums; but rows whose
numbers may be off by a rounding or two mostly have the same codes. If a row is known to within
`off`, its scores err by off radius_k more than those of a row that is known:

    E_k = beta (||x|| radius_k + size_k) + off radius_k,

as if the row were longer by off / beta. So the search takes it for that long, and only rows that
are in doubt even so are projected exactly, before they are measured.
"""

import torch
from torch import Tensor

from ..kernels.rvq.certificate import MARGIN
from ..reference.rvq.projection import ROWS

LEAST_OFF = 2.0**-110  # what underflow can lose
# Against a row's length: what rounding its numbers to float32 can change, here and in the exact
# one; and of what is left of it, what subtracting the same codeword from both can.
ROUNDED = 2.0**-22


def near_projection(rows: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """Write weight . frame + bias to `out`, summed in float64 and rounded.

    Args:
        rows: (n, n_mels) float32 or half precision.
        weight: (D, n_mels) float32.
        bias: (D,) float32, or None.
        out: (n, D) float32.

    Returns:
        (n,) float64, positive: with ROUNDED times its length, how far each row of `out` may be from
        what `project` gives; NaN or infinite where it tells nothing.
    """
    norm, columns = torch.linalg.vector_norm, weight.double().t()
    shift = None if bias is None else bias.double()
    error = MARGIN * (weight.shape[1] + 2) * 2.0**-53
    longest, least = error * float(norm(columns)), LEAST_OFF
    if shift is not None:
        least += error * float(norm(shift))
    off = []
    for start in range(0, len(rows), ROWS):
        frames, into = rows[start : start + ROWS].double(), out[start : start + ROWS]
        into.copy_(frames @ columns if shift is None else torch.addmm(shift, frames, columns))
        off.append(norm(frames, dim=1))
    return (off[0] if len(off) == 1 else torch.cat(off)).mul_(longest).add_(least)
