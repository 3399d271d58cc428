"""The exact nearest-code search: plain difference form, and float64 where float32 cannot tell."""

import torch
from torch import Tensor

from ..checks import refuse_in_capture

# Elements of a (rows, K, D) block of differences, 2 MB in float32: what stays in a core's cache.
BLOCK_ELEMENTS = 1 << 19
# Below this a float32 squared distance may have lost terms to underflow.
UNDERFLOW = 2.0**-100


def nearest_code(x: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest codeword of every row, exactly.

    Distances are taken in difference form. A row whose two smallest float32 distances are closer
    than their rounding bound is measured again in float64, where distances that agree to (D + 2) *
    2^-52 relative count as tied. The lowest index wins a tie; a row with a NaN or an infinity gets
    code 0.

    Args:
        x: (N, D) float32 or float64.
        codebook: (K, D), K >= 2, the dtype of `x`, finite.

    Returns:
        (N,) int64.
    """
    if x.dtype == torch.float32:
        refuse_in_capture(x.device, "encode: the exact search without kernels waits for near-ties")
    n = x.shape[0]
    codes = torch.empty(n, dtype=torch.int64, device=x.device)
    rows = max(1, BLOCK_ELEMENTS // codebook.numel())
    for start in range(0, n, rows):
        block = x[start : start + rows]
        if x.dtype == torch.float64:
            codes[start : start + rows] = nearest_in_float64(block, codebook)
            continue
        distance = _squared_distances(block, codebook)  # (rows, K)
        two, index = distance.topk(2, dim=1, largest=False)
        (best, second), index = two.unbind(1), index[:, 0]
        bound = (codebook.shape[1] + 2) * 2.0**-24 * (best + second)
        certain = (second - best > bound) & (second > UNDERFLOW)  # False for NaN
        if not certain.all():
            unsure = ~certain
            index[unsure] = nearest_in_float64(block[unsure], codebook)
        codes[start : start + rows] = index
    return codes


def _squared_distances(x: Tensor, codebook: Tensor) -> Tensor:
    return (x[:, None] - codebook).square_().sum(-1)  # (N, K)


def nearest_in_float64(x: Tensor, codebook: Tensor) -> Tensor:
    """`nearest_code` without float32's shortcut or blocks: for few rows."""
    x, codebook = x.double(), codebook.double()
    distance = _squared_distances(x, codebook)
    tie = (codebook.shape[1] + 2) * 2.0**-52
    near = distance <= distance.amin(1, keepdim=True) * (1 + tie)
    return near.to(torch.uint8).argmax(1)  # first maximum: the lowest index; 0 for a NaN row
