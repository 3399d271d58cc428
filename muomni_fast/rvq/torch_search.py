"""The nearest codes of blocks of rows without Triton: scores by one matrix product, certified.

With a table of codewords (`kernels.rvq.table`), rows get columns as it has: [x, 1, -beta ||x||,
-beta] times [word, bias, radius, |bias|] is score - E, the least the score can be in real
arithmetic (`kernels.rvq.certificate`), so that one product gives it for every code. A row whose
lowest stands alone is done; the others are measured in float64 against their candidates, of which
most have two.
"""

import functools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.rvq.certificate import FLUSH, proof
from ..kernels.rvq.table import UNDERFLOW_MARGIN, row_table, table_width
from ..reference.rvq.projection import project
from ..reference.rvq.search import nearest_code
from .table_views import OVERFLOW, TableViews, views_of
from .torch_projection import ROUNDED, near_projection, row_norms

# Of a block of rows, scores and the rows themselves, for each thread: so many rows that what the
# product spends on the codebook alone does not show.
BLOCK_NUMBERS = 1 << 21
KEPT_NUMBERS = 1 << 23  # for all threads: 32 MB, which stay for the next call
# For fewer rows, making a table costs more than it saves.
ROWS_FOR_TABLE = 64
# From so many threads on torch finds a lowest score sooner: numpy takes a twelfth of one thread's
# time, but has only one.
THREADS_FOR_TORCH = 12
# A row's candidates are measured one by one unless they are more than this part of all codes.
MOST_CANDIDATES = 1 / 8
PAIR_NUMBERS = 1 << 18  # of rows and candidates measured at once
NUMBERS_FOR_FLOAT32 = 1 << 16  # in rows, from which on their norms are taken by `row_norms`
TINY = 2.0**-100  # against any norm


class CertifiedSearch:
    """Nearest codes of blocks of rows.

    Args:
        codebooks: Q of (K, D) float32.
        table: (Q, 2, K, W), what `search_table` gives, or None.
        rows: of the whole batch.
        precision: of float32 products: "ieee", "tf32" or "bf16".

    Attributes:
        block: most rows at once.
        coarse: whether rows are projected in float32, and left undecided where that is not enough;
            may be set before rows are taken, where precision is "ieee".
        residual: (n, D), what is left of the rows that are searched for, or near it.
        off: (n,) float64, how far from it; None where no row is.
        finite: (n,) bool, frames without a NaN or an infinity, where rows are projected; so too
            settled: rows that have been projected exactly,
            undecided: rows whose codes a coarse search does not tell.
    """

    def __init__(
        self, codebooks: Sequence[Tensor], table: Tensor | None, rows: int, precision: str
    ) -> None:
        size, dim = codebooks[0].shape
        device, threads = codebooks[0].device, torch.get_num_threads()
        # On a CPU numpy's arrays, whose calls cost a fifth of torch's and whose argmin a twelfth;
        # but it has one thread.
        few = device.type == "cpu" and threads < THREADS_FOR_TORCH
        as_array: Any = Tensor.numpy if few else Tensor.detach
        views = None
        if table is not None:
            views = views_of(table, dim, as_array)
        elif rows >= ROWS_FOR_TABLE:
            made = torch.stack([row_table(c, mark_repeats=False) for c in codebooks])
            views = TableViews(made.transpose(1, 2), dim, as_array)
        numbers = min(BLOCK_NUMBERS * threads, KEPT_NUMBERS)
        self.block = max(1, min(rows, numbers // (size + 2 * dim)))
        self.dim, self.codebooks, self.views, self.as_array = dim, codebooks, views, as_array
        self.coarse = False
        self.beta, self.twice, self.ties = proof(dim, precision)
        if views is None:  # scores are taken of the codewords, whose norms then are float32's
            self.beta, self.twice = 2 * self.beta, 2 * self.twice
        shape = self.block, size, dim, self.beta, as_array, device
        # Taken out while it is in use: a signal handler, say, may encode meanwhile.
        space = _kept.__dict__.pop("workspace", None)
        if space is None or space.shape[1:] != shape[1:] or space.shape[0] < self.block:
            space = _Workspace(*shape)
        self.space = space

    def finish(self) -> None:
        """Leave the buffers to the next call."""
        block, size, dim, *_, device = self.space.shape
        if device.type == "cpu" and block * (size + 2 * dim) <= KEPT_NUMBERS:
            _kept.workspace = self.space

    def start(self, rows: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        """Take rows (n, n_mels), at most `block`, and project them to (n, D) unless weight is None:
        what is searched for next."""
        n, space = len(rows), self.space
        self.augmented, self.lower = space.augmented[:n], space.lower[:n]
        self.residual, self.words = space.residual[:n], space.words[:n]
        self.cut, self.least = space.cut[:n], space.least[:n]
        self.starts = space.starts[:n]
        self.off = None
        self.codes: list[Tensor] = []
        if weight is None:
            self.residual.copy_(rows)
        else:
            self.frames, self.weight, self.bias = rows, weight, bias
            dtype = torch.float32 if self.coarse else torch.float64
            self.off = self.as_array(near_projection(rows, weight, bias, self.residual, dtype))
            self.settled = np.zeros(n, bool)
            self.finite = self.off < torch.inf
            self.undecided = self.finite & False

    def _settle(self, rows: Any) -> None:
        """Leave in `residual` exactly what is left of some of its rows, once of each."""
        self.settled[rows] = True
        index = torch.from_numpy(rows).to(self.residual.device)
        exact = project(self.frames.index_select(0, index), self.weight, self.bias)
        for codebook, codes in zip(self.codebooks, self.codes, strict=False):
            exact -= codebook[codes[index]]
        self.residual[index] = exact

    def nearest(self, q: int) -> tuple[Any, Any]:
        """Codes of `residual` in codebook q: (n,) int64; and which rows hold a NaN or an infinity,
        if any: (n,) bool. Both as arrays."""
        if self.residual.numel() < NUMBERS_FOR_FLOAT32:
            norms = torch.linalg.vector_norm(self.residual, dim=1, dtype=torch.float64)
        else:
            norms = row_norms(self.residual)
        norm = self.as_array(norms)
        norm += TINY  # never zero: a repeated codeword's radius is minus infinity
        if self.off is not None:
            self.off += ROUNDED * norm
            norm += self.off / self.beta
        views = self.views
        if views is None:
            radius, size, scale, longest = self._plain_scores(norm, q)
        else:
            self.cut[:] = norm * -self.beta
            torch.mm(self.augmented, views.columns[q], out=self.lower)
            radius, size = views.radii[q], views.sizes[q]
            scale, longest = views.scales[q], views.longest[q]
        codes = self.least.argmin(1)
        places = self.starts + codes
        scores = self.space.scores
        lowest = scores[places]
        scores[places] = torch.inf
        second = self.as_array(self.lower.amin(1))
        reach = norm * (radius[codes] + self.ties / self.twice * scale * norm) + size[codes]
        limit = lowest + self.twice * reach
        # Where a sum may have overflowed, scores tell nothing; nor of NaN.
        bounded = norm < longest
        certain = (second > limit) & bounded
        if certain.all():
            return codes, None
        if self.coarse:
            self.undecided |= self.finite & ~certain
            codes[~self.finite] = 0
            return codes, ~self.finite
        scores[places] = lowest
        return codes, self._decide(q, codes, certain, limit, bounded, norm)

    def _decide(self, q: int, codes: Any, certain: Any, limit: Any, bounded: Any, norm: Any) -> Any:
        """Write the codes of rows that are not certain; returns which hold a NaN or an infinity."""
        doubt = np.flatnonzero(~_on_host(certain))
        on_cpu = self.codebooks[q].device.type == "cpu"
        if self.off is not None:
            rough = _on_host(self.finite) & ~self.settled
            if on_cpu:  # rows that have candidates are measured as they are first
                rough &= ~_on_host(bounded)
            if len(rows := doubt[rough[doubt]]):
                self._settle(rows)
        broken = ~(norm < torch.inf)
        if broken.any():  # or only far beyond float32, before it was projected exactly
            broken[doubt] = ~self.as_array(self.residual[doubt].isfinite().all(1))
            codes[broken] = 0
            doubt = doubt[~_on_host(broken)[doubt]]
        if on_cpu:
            near = self.lower.numpy()[doubt] <= np.asarray(limit)[doubt, None]
            near &= np.asarray(bounded)[doubt, None]
            codes[doubt] = self.as_array(torch.from_numpy(self._measured(doubt, near, q)))
        else:
            codes[doubt] = nearest_code(self.residual[doubt], self.codebooks[q])
        return broken

    def _measured(self, doubt: Any, near: Any, q: int) -> NDArray[np.int64]:
        """Exact codes of rows in doubt that have `near` for candidates; on a CPU."""
        x, codebook = self.residual.numpy(), self.codebooks[q].numpy()
        off = np.zeros(len(doubt))
        if self.off is not None:
            off = np.where(self.settled[doubt], 0, np.asarray(self.off)[doubt])
        codes, undecided = nearest_of(x[doubt], codebook, near, off)
        if undecided.any():
            rows, near = doubt[undecided], near[undecided]  # candidates of the exact row too
            self._settle(rows)
            codes[undecided], _ = nearest_of(x[rows], codebook, near, np.zeros(len(rows)))
        return codes

    def _plain_scores(self, norm: Any, q: int) -> tuple[Any, Any, float, float]:
        """Write every score - E to `lower`, without a table; radius and size of every code, the
        scale, and what norms may be."""
        codebook = self.codebooks[q]
        radius = torch.linalg.vector_norm(codebook, dim=1)
        size = (radius.square() / 2).add_(
            UNDERFLOW_MARGIN
        )  # and bias, as what all share does not matter
        radius += (self.dim * FLUSH) ** 0.5  # what its squares may have lost
        lower = size * (1 - self.beta)
        torch.addmm(lower, self.residual, codebook.t(), alpha=-1, out=self.lower)
        self.lower.addr_(torch.as_tensor(norm).float(), radius, alpha=-self.beta)
        longest = (OVERFLOW - float(size.max())) / float(radius.max())
        return self.as_array(radius), self.as_array(size), 1.0, longest

    def subtract(self, codes: Any, q: int) -> None:
        """Leave in `residual` what codebook q does not represent."""
        index = codes if isinstance(codes, Tensor) else torch.from_numpy(codes)
        self.codes.append(index)
        self.residual -= torch.index_select(self.codebooks[q], 0, index, out=self.words)


class _Workspace:
    """Buffers for blocks of rows and one shape of codebooks. A CPU's are kept for the next call of
    the thread: fresh memory costs a page fault for every 4 KB, together more than the search.

    Attributes:
        augmented: (block, W), rows with the columns that scores are taken of; `residual` is the
            rows, `cut` the column -beta ||x||.
        lower: (block, K), the least each score can be; as an array `least`, without a shape
            `scores`, where its rows start at `starts`.
        words: (block, D), for codewords.
    """

    def __init__(
        self, block: int, size: int, dim: int, beta: float, as_array: Any, device: torch.device
    ) -> None:
        self.shape = block, size, dim, beta, as_array, device
        with torch.inference_mode(False):
            new = functools.partial(torch.empty, dtype=torch.float32, device=device)
            self.augmented = new(block, table_width(dim)).zero_()
            self.augmented[:, dim] = 1
            self.augmented[:, dim + 2] = -beta
            self.residual = self.augmented[:, :dim]
            self.cut = as_array(self.augmented[:, dim + 1])
            self.lower = new(block, size)
            self.least = as_array(self.lower)
            self.scores = self.least.reshape(-1)
            self.starts = as_array(torch.arange(block, device=device) * size)
            self.words = new(block, dim)


_kept = threading.local()


def _on_host(array: Any) -> Any:
    """An array, or a tensor of any device, as numpy's."""
    return np.asarray(torch.as_tensor(array).cpu())


def nearest_of(
    rows: Any, codebook: Any, near: Any, off: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Exact codes of rows in doubt, in numpy's arrays.

    Args:
        rows: (n, D) float32.
        codebook: (K, D) float32.
        near: (n, K) bool, their candidates; none where there is no telling.
        off: (n,) float64, how far each may be from the row whose code is asked for; zero where it
            is that row.

    Returns:
        (n,) int64; and (n,) bool, rows that are off where that can matter, or that have no or too
        many candidates: what is returned for those tells nothing.
    """
    dim, size = rows.shape[1], len(codebook)
    codes = np.zeros(len(rows), np.int64)
    row, code = near.nonzero()
    count = np.bincount(row, minlength=len(rows))
    many = (count == 0) | (count > MOST_CANDIDATES * size)
    undecided = many & (off > 0)
    if many.any():
        whole = many & ~undecided
        codes[whole] = nearest_code(torch.from_numpy(rows[whole]), torch.from_numpy(codebook))
        few = ~many[row]
        row, code = row[few], code[few]
    distance = np.empty(len(row))
    step = max(1, PAIR_NUMBERS // dim)
    for pairs in range(0, len(row), step):
        part = slice(pairs, pairs + step)
        apart = rows[row[part]].astype(np.float64) - codebook[code[part]]
        # torch's sums, as the reference's: in another order some would be tied that are not there.
        distance[part] = torch.from_numpy(apart).square_().sum(1).numpy()
    least = np.full(len(rows), np.inf)
    np.minimum.at(least, row, distance)
    tied = distance <= least[row] * (1 + (dim + 2) * 2.0**-52)
    codes[row[tied][::-1]] = code[tied][::-1]  # the last that is written is the lowest
    # A row that is off by so much may be nearer to a codeword, or farther from it, by as much.
    reach = (np.sqrt(least) + 2 * off) ** 2 * (1 + (dim + 4) * 2.0**-50)
    undecided |= (off > 0) & (np.bincount(row, distance <= reach[row], len(rows)) > 1)
    return codes, undecided
