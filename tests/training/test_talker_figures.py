"""Figures of the Talker against values worked out by hand."""

import math
from itertools import product

import pytest
import torch

from muomni_fast.reference.talker.delay import NO_TARGET
from muomni_fast.reference.training.talker_figures import (
    Tally,
    guesses,
    rank,
    warped_distance,
    with_ends,
)


def slow_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The recursion as it is written down."""
    best = {(-1, -1): 0.0}
    for i, j in product(range(len(a)), range(len(b))):
        before = [best.get(at, math.inf) for at in ((i - 1, j), (i, j - 1), (i - 1, j - 1))]
        best[i, j] = float((a[i] - b[j]).norm()) + min(before)
    return best[len(a) - 1, len(b) - 1] / (len(a) + len(b))


@pytest.mark.parametrize(("s", "t"), [(1, 1), (1, 7), (7, 1), (5, 5), (9, 4), (4, 9)])
def test_warped_distance(s, t):
    a, b = torch.randn(s, 3), torch.randn(t, 3)
    assert warped_distance(a, b) == pytest.approx(slow_distance(a, b), rel=1e-5)
    assert warped_distance(a, a.repeat_interleave(3, 0)) == pytest.approx(0, abs=1e-6)


def test_the_rank_of_the_true_clip():
    said = torch.randn(6, 3)
    clips = [said + level * torch.randn(6, 3) for level in (1.0, 0.1, 2.0)]
    assert [rank(said, clips, i) for i in range(3)] == [2, 1, 3]


def test_a_tally_over_batches():
    tally = Tally(2)
    logits = torch.zeros(3, 2, 4)  # (N, Q, K + 1): log 4 nats each
    logits[0, 0, 3] = 100  # but for this one, which is right
    tally.add(logits[:1], torch.tensor([[3, 1]]))
    tally.add(logits[1:], torch.tensor([[0, 2], [NO_TARGET, 0]]))
    figures = tally.figures()
    assert figures["nats_1"] == pytest.approx(math.log(4) / 2)
    assert figures["nats_2"] == pytest.approx(math.log(4))
    assert figures["nats"] == pytest.approx(4 * math.log(4) / 5)
    assert (figures["accuracy_1"], figures["accuracy_2"]) == (1.0, pytest.approx(1 / 3))


def test_guesses_count_codes_and_pairs():
    """0 1 0 1 ...: a unigram is right half of the time, a bigram always but at the end."""
    codes = torch.tensor([[0, 5], [1, 5]] * 50, dtype=torch.int32)
    assert with_ends(codes.long(), 8)[-1].tolist() == [8, NO_TARGET]
    found = guesses([codes] * 4, [codes], 8)
    assert found["unigram"]["accuracy_1"] == pytest.approx(0.5, abs=0.01)
    assert found["bigram"]["accuracy_1"] == pytest.approx(100 / 101)
    assert found["bigram"]["nats_1"] < 0.2 < 0.6 < found["unigram"]["nats_1"] < 0.8
    assert found["unigram"]["accuracy_2"] == 1.0 and found["unigram"]["nats_2"] < 0.1
