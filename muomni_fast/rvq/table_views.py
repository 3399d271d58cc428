"""Tables of codewords as the torch paths read them, kept for as long as a table is.

For a few rows, taking a table apart costs as much as searching it.
"""

import math
import weakref
from typing import Any

from torch import Tensor

OVERFLOW = 2.0**126  # scores up to here, and parts of their sums, are finite


def longest_norm(dim: int, scale: float) -> float:
    """Of rows, whose scores with a table of this scale cannot overflow."""
    # A scaled codeword's numbers are below 2, so centred ones' below 4: radii are below 4 D^0.5,
    # and sizes, half of squared scaled norms over the scale, below 2 D over it.
    if not scale:  # flushed, as of codewords beyond 2^127: no score tells anything
        return -math.inf
    return (OVERFLOW - 3 * dim / scale) / (5 * dim**0.5)


class TableViews:
    """What scores are taken of, for codewords of `dim` numbers.

    Attributes:
        columns: Q of (W, K), `row_table` transposed.
        numbers: the same (Q, W, K), as an array.
        radii, sizes: (Q, K), as arrays.
        scales, longest: Q numbers: the scales, and what `longest_norm` says of each.
    """

    def __init__(self, columns: Tensor, dim: int, as_array: Any) -> None:
        self.columns, self.numbers = columns.unbind(), as_array(columns)
        self.radii, self.sizes = self.numbers[:, dim + 1], self.numbers[:, dim + 2]
        self.scales = columns[:, dim + 3, 0].tolist()
        self.longest = [longest_norm(dim, scale) for scale in self.scales]


def views_of(table: Tensor, dim: int, as_array: Any) -> TableViews:
    """Of what `search_table` gives (Q, 2, K, W); copied where it is not contiguous.

    Changes are noticed, and memory that has moved (to be shared with another process, or by
    `.data = ...`), which its version does not tell of; not writes through `.data`.
    """
    if table.is_inference():  # whether it has changed cannot be told
        return TableViews(_columns(table), dim, as_array)
    place, made_of = id(table), (table._version, table.data_ptr(), dim, as_array)
    kept = _kept.get(place)
    if kept is None or kept[0]() is not table or kept[1:-1] != made_of:
        views = TableViews(_columns(table.detach()), dim, as_array)
        kept = _kept[place] = weakref.ref(table, lambda _: _kept.pop(place, None)), *made_of, views
    return kept[-1]


_kept: dict[int, tuple[Any, int, int, int, Any, TableViews]] = {}


def _columns(table: Tensor) -> Tensor:
    n_codebooks, _, size, width = table.shape
    return table[:, 0].reshape(n_codebooks, width, size)
