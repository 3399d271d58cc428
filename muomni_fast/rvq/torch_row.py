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
from .table_views import TableViews, views_of
from .torch_projection import LEAST_NORM, MOST_TERMS, ROUNDED, near_projection
from .torch_search import KEPT_NUMBERS

LEAST_SQUARE = LEAST_NORM**2  # of a row, as float32 sums it


class _Workspace:
    """Buffers for one shape of codebooks: the row with the columns that scores are taken of, and
    scores."""

    def __init__(self, size: int, dim: int) -> None:
        self.shape = size, dim
        with torch.inference_mode(False):
            self.augmented = torch.zeros(1, table_width(dim), dtype=torch.float32)
            self.lower = torch.empty(1, size, dtype=torch.float32)
            self.row = self.augmented[:, :dim]
        self.columns, self.least = self.augmented.numpy()[0], self.lower.numpy()[0]


_kept = threading.local()


def certain_codes(
    row: Tensor,
    codebooks: Sequence[Tensor],
    table: Tensor,
    precision: str,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> list[int] | None:
    """The code of a row in each codebook, or None where one of them is in doubt.

    Args:
        row: (1, n_mels) float32, or half precision.
        codebooks: Q of (K, D) float32.
        table: (Q, 2, K, W), what `search_table` gives.
        precision: of float32 products: "ieee", "tf32" or "bf16".
        weight, bias: (D, n_mels) and (D,) float32 of the projection, or None.
    """
    size, dim = codebooks[0].shape
    if dim > MOST_TERMS:
        return None
    # Taken out while it is in use, as that of `CertifiedSearch`.
    space = _kept.__dict__.pop("workspace", None)
    if space is None or space.shape != (size, dim):
        space = _Workspace(size, dim)
    try:
        off = 0.0
        if weight is None:
            space.row.copy_(row)
        else:
            off = float(near_projection(row, weight, bias, space.row, torch.float64))
        return _search(off, codebooks, views_of(table, dim, Tensor.numpy), precision, space)
    finally:
        if size <= KEPT_NUMBERS:
            _kept.workspace = space


def _search(
    off: float, codebooks: Sequence[Tensor], views: TableViews, precision: str, space: _Workspace
) -> list[int] | None:
    """The codes of what is in `space.row`, off by as much from what is searched for."""
    (_, dim), columns, least = space.shape, space.columns, space.least
    (beta, twice, ties), residual = proof(dim, precision), columns[:dim]
    columns[dim], columns[dim + 2] = 1, -beta
    codes: list[int] = []
    for q, words in enumerate(views.columns):
        if q:
            residual -= codebooks[q - 1].numpy()[codes[-1]]
        square = float(residual @ residual)
        if not square > LEAST_SQUARE:  # nor is NaN
            return None
        norm = math.sqrt(square)
        if off:
            off += ROUNDED * norm
            norm += off / beta
        columns[dim + 1] = -beta * norm
        torch.mm(space.augmented, words, out=space.lower)
        code = int(least.argmin())
        lowest = float(least[code])
        least[code] = np.inf
        _, radius, bound, scale = views.numbers[q, dim : dim + 4, code].tolist()
        reach = norm * (radius + ties / twice * scale * norm) + bound
        if not (float(least.min()) > lowest + twice * reach and norm < views.longest[q]):
            return None
        codes.append(code)
    return codes
