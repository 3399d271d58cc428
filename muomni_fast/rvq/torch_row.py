"""Codes of a single row on a CPU, with a table: what a stream of frames asks for.

`torch_search` on one row spends most of its time on calls, a dozen small ones a codebook. Here all
that is not a vector is Python's own number. Where anything is in doubt the row is left to it.
"""

import math
import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..kernels.rvq.certificate import proof
from ..kernels.rvq.table import table_width
from .torch_search import longest_norm

# Of a row in float32: its square is off by less than a thousandth, as is what follows of it.
MOST_DIM = 1 << 12
LEAST_SQUARE, MOST_SQUARE = 2.0**-60, 2.0**100


class _Workspace:
    """Buffers for one shape of codebooks: the row with the columns that scores are taken of, and
    scores."""

    def __init__(self, dim: int, size: int) -> None:
        with torch.inference_mode(False):
            self.augmented, self.lower = torch.zeros(table_width(dim)), torch.empty(size)
        self.columns, self.least = self.augmented.numpy(), self.lower.numpy()
        self.residual = self.columns[:dim]


_kept = threading.local()


def certain_codes(
    row: Tensor, codebooks: Sequence[Tensor], table: Tensor, precision: str
) -> list[int] | None:
    """The code of a row in each codebook, or None where one of them is in doubt.

    Args:
        row: (D,) float32, or half precision.
        codebooks: Q of (K, D) float32.
        table: (Q, K, W), what `search_table` gives.
        precision: of float32 products: "ieee", "tf32" or "bf16".
    """
    size, dim = codebooks[0].shape
    if dim > MOST_DIM:
        return None
    # Taken out while it is in use: a signal handler, say, may encode meanwhile.
    space = _kept.__dict__.pop("workspace", None)
    if space is None or space.residual.shape[0] != dim or space.least.shape[0] != size:
        space = _Workspace(dim, size)
    columns, residual, least = space.columns, space.residual, space.least
    beta, twice, ties = proof(dim, precision)
    columns[dim], columns[dim + 2] = 1, -beta
    residual[:] = row.float().numpy()
    codes: list[int] = []
    tables = table.numpy()
    for q, words in enumerate(table.unbind()):
        if q:
            residual -= codebooks[q - 1].numpy()[codes[-1]]
        square = float(residual @ residual)
        if not LEAST_SQUARE < square < MOST_SQUARE:  # nor is NaN
            return None
        norm = math.sqrt(square)
        columns[dim + 1] = -beta * norm
        torch.mv(words, space.augmented, out=space.lower)
        code = int(least.argmin())
        lowest = float(least[code])
        least[code] = np.inf
        _, radius, bound, scale = tables[q, code, dim : dim + 4].tolist()
        reach = norm * (radius + ties / twice * scale * norm) + bound
        if not (float(least.min()) > lowest + twice * reach and norm < longest_norm(dim, scale)):
            return None
        codes.append(code)
    _kept.workspace = space
    return codes
