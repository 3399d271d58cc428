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
from .torch_search import KEPT_NUMBERS, longest_norm

# Of a row in float32: its square is off by less than a thousandth, as is what follows of it.
MOST_DIM = 1 << 12
LEAST_SQUARE = 2.0**-60


class _Workspace:
    """Buffers for one shape of codebooks: the row with the columns that scores are taken of, and
    scores."""

    def __init__(self, size: int, dim: int) -> None:
        self.shape = size, dim
        with torch.inference_mode(False):
            self.augmented = torch.zeros(table_width(dim), dtype=torch.float32)
            self.lower = torch.empty(size, dtype=torch.float32)
        self.columns, self.least = self.augmented.numpy(), self.lower.numpy()


_kept = threading.local()


def certain_codes(
    row: Tensor, codebooks: Sequence[Tensor], table: Tensor, precision: str
) -> list[int] | None:
    """The code of a row in each codebook, or None where one of them is in doubt.

    Args:
        row: (D,) float32, or half precision.
        codebooks: Q of (K, D) float32.
        table: (Q, K, W), what `row_table` gives.
        precision: of float32 products: "ieee", "tf32" or "bf16".
    """
    size, dim = codebooks[0].shape
    if dim > MOST_DIM:
        return None
    # Taken out while it is in use, as that of `CertifiedSearch`.
    space = _kept.__dict__.pop("workspace", None)
    if space is None or space.shape != (size, dim):
        space = _Workspace(size, dim)
    try:
        return _search(row, codebooks, table, precision, space)
    finally:
        if size <= KEPT_NUMBERS:
            _kept.workspace = space


def _search(
    row: Tensor, codebooks: Sequence[Tensor], table: Tensor, precision: str, space: _Workspace
) -> list[int] | None:
    (_, dim), columns, least = space.shape, space.columns, space.least
    (beta, twice, ties), tables, residual = proof(dim, precision), table.numpy(), columns[:dim]
    columns[dim], columns[dim + 2] = 1, -beta
    residual[:] = row.float().numpy()
    codes: list[int] = []
    for q, words in enumerate(table.unbind()):
        if q:
            residual -= codebooks[q - 1].numpy()[codes[-1]]
        square = float(residual @ residual)
        if not square > LEAST_SQUARE:  # nor is NaN
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
    return codes
