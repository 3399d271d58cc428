"""Codes by beam search: the best of several paths through the codebooks, where greedy takes one.

Torch operators only, in blocks of rows. Distances come out of matrix products and are rounded, so
these codes have no certificate, and a row whose best paths are equally good to float32 may get one
or the other on another device or among other rows.
"""

import torch
from torch import Tensor

from ..checks import full_precision

MOST_BEAM = 1 << 10
BLOCK_NUMBERS = 1 << 20  # of a block's scores and residuals together


def beam_search(z: Tensor, codebooks: Tensor, greedy: Tensor, beam: int) -> Tensor:
    """Codes with the smallest error that a beam of paths finds; never worse than greedy ones.

    From codebook to codebook the `beam` paths of least error are kept, as in faiss's
    `ResidualQuantizer`. Greedy's path may be lost on the way, so the end is compared with it, in
    float64; it stays where it is as good.

    Args:
        z: (..., D) projected frames, float32 or float64.
        codebooks: (Q, K, D), the dtype of `z`.
        greedy: (..., Q) codes of the greedy search; where a row is not finite, they stay.
        beam: paths, at least 1.

    Returns:
        (..., Q) int64.
    """
    n_codebooks, size, dim = codebooks.shape
    rows, first = z.reshape(-1, dim), greedy.reshape(-1, n_codebooks)
    codes = torch.empty_like(first)
    block = max(1, BLOCK_NUMBERS // (beam * (size + 3 * dim)))
    with torch.no_grad(), full_precision(z):
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            found = _paths(rows[part], codebooks, beam)
            both = torch.stack([first[part], found], 1)  # (n, 2, Q)
            error = _errors(rows[part], codebooks, both)
            better = error[:, 1] < error[:, 0]  # False for NaN
            codes[part] = found.where(better[:, None], first[part])
    return codes.reshape(greedy.shape)


def _paths(rows: Tensor, codebooks: Tensor, beam: int) -> Tensor:
    """The best path of each row (n, D) that a beam finds: (n, Q)."""
    size, dim = codebooks.shape[1:]
    residual = rows[:, None]  # (n, b, D), b paths so far
    codes = torch.empty(len(rows), 1, 0, dtype=torch.int64, device=rows.device)
    for codebook in codebooks:
        left = residual.square().sum(-1, keepdim=True)
        scores = left + codebook.square().sum(-1) - 2 * (residual @ codebook.t())  # (n, b, K)
        paths = scores.flatten(1)
        best = paths.topk(min(beam, paths.shape[1]), dim=1, largest=False).indices
        parent, code = (best // size)[..., None], best % size
        residual = residual.gather(1, parent.expand(-1, -1, dim)) - codebook[code]
        before = codes.gather(1, parent.expand(-1, -1, codes.shape[2]))
        codes = torch.cat([before, code[..., None]], 2)
    nearest = residual.square().sum(-1).argmin(1)  # (n,)
    return codes[torch.arange(len(codes), device=codes.device), nearest]


def _errors(rows: Tensor, codebooks: Tensor, codes: Tensor) -> Tensor:
    """Squared distances of rows (n, D) from what codes (n, 2, Q) stand for: (n, 2) float64."""
    residual = rows.double()[:, None]
    for codebook, column in zip(codebooks, codes.unbind(-1), strict=True):
        residual = residual - codebook[column].double()
    return residual.square().sum(-1)
