"""A projection whose every number is the exact one, correctly rounded.

A float32 product rounds by the order of its sums, and that differs between machines, numbers of
threads and numbers of rows: the same frame would get other codes in another batch. Here sums are
taken in float64, where the products of two float32 are exact; the few whose rounding to float32
depends on what float64 sums may have lost are summed again exactly.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROWS = 1 << 9  # at once, so that their float64 sums stay in a core's cache


def project(mel: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """weight . frame + bias, each number rounded once: the same bits whatever surrounds the frame.

    A frame with a NaN or an infinity gives what float64 arithmetic gives.

    Args:
        mel: (N, n_mels) float32, bfloat16 or float16.
        weight: (D, n_mels) float32.
        bias: (D,) float32, or None.
        out: (N, D) float32 to write to, or None.

    Returns:
        (N, D) float32.
    """
    if out is None:
        out = weight.new_empty(len(mel), len(weight))
    columns = weight.double().t()
    shift = None if bias is None else bias.double()
    longest = float(torch.linalg.vector_norm(weight, dim=1, dtype=torch.float64).max())
    largest = 0.0 if bias is None else float(bias.abs().max())
    for start in range(0, len(mel), ROWS):
        rows = mel[start : start + ROWS].double()
        sums = rows @ columns if shift is None else torch.addmm(shift, rows, columns)
        # More than the absolute values of any sum's terms together, and what it may be off by in
        # any order; a per cent covers the rounding of both: (n, 1).
        total = torch.linalg.vector_norm(rows, dim=1, keepdim=True).mul_(longest).add_(largest)
        error = total * (1.01 * (weight.shape[1] + 2) * 2.0**-53)
        part = out[start : start + ROWS]
        part.copy_(sums + error)
        lower = (sums - error).float()
        # On a CPU numpy's arrays, with which a few numbers cost a third of what they cost torch.
        unsure = np.flatnonzero(part.numpy(force=True) != lower.numpy(force=True))
        if len(unsure):
            part.copy_(sums)
            n, d = _undecided(unsure, rows, sums, total, weight, bias)
            terms = rows.numpy(force=True)[n] * columns.t().numpy(force=True)[d]
            if shift is not None:
                terms = np.concatenate([terms, shift.numpy(force=True)[d, None]], 1)
            rounded = torch.from_numpy(_rounded(terms, total.numpy(force=True)[n, 0]))
            part[torch.from_numpy(n), torch.from_numpy(d)] = rounded.to(part.device)
    return out


def _undecided(
    unsure: Any, rows: Tensor, sums: Tensor, total: Tensor, weight: Tensor, bias: Tensor | None
) -> Any:
    """Rows and columns of the sums, of those that are unsure, that float64 may have rounded."""
    unsure = unsure[np.isfinite(sums.numpy(force=True).reshape(-1)[unsure])]
    if len(unsure) > sums.numel() / 64:
        # Multiples of a power of two have exact sums, up to 2^53 of it. So have frames and weights
        # of half precision, whose sums often lie in the middle of two float32.
        step = _step(rows.float()) * _step(weight).amin()
        if bias is not None:
            step = step.minimum(_step(bias[None]))
        rounded = (total >= 2.0**52 * step).numpy(force=True)[:, 0]
        unsure = unsure[rounded[unsure // sums.shape[1]]]
    return np.divmod(unsure, sums.shape[1])


def _step(x: Tensor) -> Tensor:
    """The largest power of two of which all numbers of a row are multiples: (n, m) -> (n, 1)."""
    mantissa, exponent = x.frexp()  # of float32: 24 bits
    whole = (mantissa * 2.0**24).int()
    lowest = (whole & -whole).double() * torch.exp2(exponent.double() - 24)
    return lowest.masked_fill_(x == 0, torch.inf).amin(1, keepdim=True)


@np.errstate(over="ignore")
def _rounded(terms: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float32]:
    """Exact sums rounded to float32: (n, m), more than their absolute values together (n,) -> (n,).

    Where long double has more bits than float64, it tells most that float64 cannot; each of the
    others is summed exactly.
    """
    sums = terms.sum(1, dtype=np.longdouble)
    error = total * (1.01 * (terms.shape[1] + 2) * np.finfo(np.longdouble).eps)
    found = sums.astype(np.float32)
    for n in np.flatnonzero((sums + error).astype(np.float32) != (sums - error).astype(np.float32)):
        found[n] = rounded_sum(terms[n].tolist())
    return found


def rounded_sum(terms: list[float]) -> float:
    """The float32 nearest to the exact sum of float64 numbers, an even one of two."""
    total = math.fsum(terms)
    with np.errstate(over="ignore"):
        nearest = np.float32(total)
    other = np.nextafter(nearest, np.float32(math.copysign(math.inf, total - float(nearest))))
    # Beyond the largest float32 the next would be 2^128, which is infinity.
    low, high = sorted(max(-(2.0**128), min(float(x), 2.0**128)) for x in (nearest, other))
    if total - low == high - total:
        # In the middle, after a rounding of its own: what that left decides.
        left = math.fsum([*terms, -total])
        if left:
            found = high if left > 0 else low
            return found if abs(found) < 2.0**128 else math.copysign(math.inf, found)
    return float(nearest)
