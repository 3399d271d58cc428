"""What a Talker is measured by, and compared with."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..talker.delay import NO_TARGET

STRENGTH = 32.0  # occurrences of the unigram's guess that a bigram starts from


class Tally:
    """Cross-entropy and accuracy of each codebook, summed over batches."""

    def __init__(self, n_codebooks: int) -> None:
        self.sums = torch.zeros(3, n_codebooks, dtype=torch.float64)  # nats, right, count

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """(..., Q, K + 1) and (..., Q); NO_TARGET does not count."""
        logits, targets = logits.flatten(0, -3), targets.flatten(0, -2)  # (N, Q, K + 1), (N, Q)
        nats = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
        counts = targets != NO_TARGET
        right = (logits.argmax(-1) == targets) & counts
        self.sums += torch.stack([nats.sum(0), right.sum(0), counts.sum(0)]).double().cpu()

    def figures(self) -> dict[str, float]:
        """`nats` over all codes, and `nats_q` and `accuracy_q` of each codebook from 1 on."""
        nats, right, count = self.sums
        figures = {"nats": float(nats.sum() / count.sum())}
        for q in range(self.sums.shape[1]):
            figures[f"nats_{q + 1}"] = float(nats[q] / count[q])
            figures[f"accuracy_{q + 1}"] = float(right[q] / count[q])
        return figures


def with_ends(codes: Tensor, codebook_size: int) -> Tensor:
    """(S, Q) -> (S + 1, Q): after its codes the first codebook has the end of speech, of class
    `codebook_size`; the others have nothing to predict."""
    last = torch.full_like(codes[:1], NO_TARGET)
    last[0, 0] = codebook_size
    return torch.cat([codes, last])


def guesses(
    training: Sequence[Tensor], held_out: Sequence[Tensor], codebook_size: int
) -> dict[str, dict[str, float]]:
    """Figures of "unigram" and "bigram", which know no text: how often a code occurs in training,
    and how often after its codebook's code before it.

    Args:
        training: codes (S, Q) of each item.
        held_out: of those to guess.
        codebook_size: K.
    """
    n_codebooks = training[0].shape[1]
    classes, begin = codebook_size + 1, codebook_size  # begin: the place before the first code
    rows = [with_ends(codes.long(), codebook_size) for codes in training]
    tallies = {"unigram": Tally(n_codebooks), "bigram": Tally(n_codebooks)}
    scores: dict[str, list[Tensor]] = {name: [] for name in tallies}
    for q in range(n_codebooks):
        after = torch.zeros(classes, classes, dtype=torch.float64)
        for row in rows:
            now = row[:, q][row[:, q] != NO_TARGET]
            before = torch.cat([now.new_tensor([begin]), now[:-1]])
            after.index_put_((before, now), torch.ones((), dtype=torch.float64), accumulate=True)
        unigram = (after.sum(0) + 1) / (after.sum() + classes)
        bigram = (after + STRENGTH * unigram) / (after.sum(1, keepdim=True) + STRENGTH)
        scores["unigram"].append(unigram.log().expand(classes, -1))
        scores["bigram"].append(bigram.log())
    tables = {name: torch.stack(found) for name, found in scores.items()}  # (Q, before, now)
    books = torch.arange(n_codebooks)
    for codes in held_out:
        now = with_ends(codes.long().cpu(), codebook_size)
        before = torch.cat([torch.full_like(now[:1], begin), now[:-1]]).clamp(min=0)
        for name, tally in tallies.items():
            tally.add(tables[name][books, before], now)
    return {name: tally.figures() for name, tally in tallies.items()}


def warped_distance(a: Tensor, b: Tensor) -> float:
    """Distance of two sequences of frames by dynamic time warping (Sakoe and Chiba, 1978).

    Args:
        a, b: (S, D) and (T, D), at least a frame each.

    Returns:
        the sum of Euclidean distances along the best path of steps (1, 0), (0, 1) and (1, 1), by
        S + T.
    """
    costs = torch.cdist(a.double(), b.double()).numpy()
    rows, columns = costs.shape
    # Diagonal by diagonal, i + j = k, each from the two before it; place 0 is outside.
    earlier, before = np.full(rows + 1, np.inf), np.full(rows + 1, np.inf)
    earlier[0] = 0
    for k in range(rows + columns - 1):
        low, high = max(0, k - columns + 1), min(rows, k + 1)
        i = np.arange(low, high)
        shorter = np.minimum(before[low:high], before[low + 1 : high + 1])
        best = np.full(rows + 1, np.inf)
        best[low + 1 : high + 1] = costs[i, k - i] + np.minimum(shorter, earlier[low:high])
        earlier, before = before, best
    return float(before[-1]) / (rows + columns)


def rank(said: Tensor, clips: Sequence[Tensor], true: int) -> int:
    """Which in order of `warped_distance` to what was said the true clip is, from 1 on."""
    distances = [warped_distance(said, clip) for clip in clips]
    return 1 + sum(d < distances[true] for i, d in enumerate(distances) if i != true)
