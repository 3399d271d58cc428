"""The start on data, revival of dead codes, EMA codebooks, and usage figures."""

import pytest
import torch
from support.ranks import on_two_ranks
from support.training import assert_same, clustered, health_on_a_rank, with_dead_codes
from torch.nn import functional as F

import muomni_fast
from muomni_fast.reference import RVQ, nearest_code
from muomni_fast.reference.training.codebook_health import (
    CodebookHealth,
    code_sums,
    kmeans,
    start_from_data,
    usage,
)


def test_kmeans_is_as_good_as_scikit_learns():
    cluster = pytest.importorskip("sklearn.cluster")
    rows = torch.randn(3000, 8)
    ours = kmeans(rows, 32, torch.Generator().manual_seed(0))
    inertia = (rows - ours[nearest_code(rows, ours)]).square().sum()
    theirs = cluster.KMeans(32, n_init=1, max_iter=30, random_state=0).fit(rows.numpy())
    assert inertia <= 1.02 * theirs.inertia_


def test_kmeans_leaves_no_code_unused():
    rows = clustered(2000)
    centres = kmeans(rows, 64, torch.Generator().manual_seed(0))
    assert len(nearest_code(rows, centres).unique()) == 64


def test_kmeans_of_fewer_rows_than_codes_keeps_codes_apart():
    rows = torch.randn(10, 4)
    centres = kmeans(rows, 16, torch.Generator().manual_seed(0))
    assert centres.shape == (16, 4) and len(centres.unique(dim=0)) == 16
    assert torch.equal(rows, centres[nearest_code(rows, centres)])


@pytest.mark.parametrize("bias", [False, True])
def test_start_projects_on_principal_components(bias):
    mel = torch.randn(2000, 8) @ torch.randn(8, 128) - 6
    rvq = RVQ(codebook_dim=16, codebook_size=32, bias=bias)
    before = F.mse_loss(rvq(mel).mel, mel)
    start_from_data(rvq, mel, torch.Generator().manual_seed(0))
    # Eight directions and a mean: 16 dimensions lose nothing.
    through = F.linear(
        F.linear(mel, rvq.proj_in.weight, rvq.proj_in.bias), rvq.proj_out.weight, rvq.proj_out.bias
    )
    torch.testing.assert_close(through, mel, rtol=0, atol=1e-3)
    out = rvq(mel)
    assert F.mse_loss(out.mel, mel) < 0.2 * before
    used, perplexity = usage(out.codes, 32)
    assert used.min() == 1 and perplexity.min() > 20


def test_start_of_more_dimensions_than_bands():
    rvq = RVQ(codebook_dim=24, n_mels=10, codebook_size=8)
    mel = torch.randn(500, 10)
    start_from_data(rvq, mel, torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        mel @ rvq.proj_in.weight.T @ rvq.proj_out.weight.T, mel, rtol=0, atol=1e-4
    )
    with pytest.raises(ValueError, match=r"\(0, 10\)"):
        start_from_data(rvq, mel[:0], torch.Generator())


def test_usage_and_perplexity():
    codes = torch.stack([torch.arange(64) % 4, torch.zeros(64, dtype=torch.int64)], 1)
    used, perplexity = usage(codes, 8)
    torch.testing.assert_close(used, torch.tensor([0.5, 0.125], dtype=torch.float64))
    torch.testing.assert_close(perplexity, torch.tensor([4.0, 1.0], dtype=torch.float64))


def test_segmented_sums():
    codes, rows = torch.tensor([2, 0, 2, 2]), torch.randn(4, 3)
    sums = code_sums(codes, rows, 4)
    torch.testing.assert_close(
        sums[2], (rows[0] + rows[2] + rows[3]).double(), rtol=1e-6, atol=1e-6
    )
    assert sums[[1, 3]].abs().max() == 0


def test_dead_codes_come_alive_and_their_state_starts_anew():
    rvq, mel = with_dead_codes()
    optimiser = torch.optim.Adam(rvq.parameters(), 1e-3)
    health = CodebookHealth(rvq, optimiser, usage_decay=0.5)
    revived = 0
    for _ in range(8):
        out = rvq(mel)
        optimiser.zero_grad()
        (F.mse_loss(out.mel, mel) + out.codebook_loss.sum()).backward()
        optimiser.step()
        moments = optimiser.state[rvq.codebooks[0].weight]["exp_avg"]
        moments[12] = 7.0
        revived += health.after_step(mel, out.codes)
        if revived:
            break
    assert revived >= 6
    assert moments[12].abs().max() == 0
    assert rvq.codebooks[0].weight[10:].abs().max() < 100
    assert len(rvq.encode(mel)[:, 0].unique()) > 10


def test_with_fewer_rows_than_dead_codes_only_the_revived_are_counted():
    rvq, mel = with_dead_codes()
    health = CodebookHealth(rvq, None, usage_decay=0.5)
    health.counts[0, 10:] = 0  # six dead codes, and four rows to revive them from
    before = rvq.stacked_codebooks().detach().clone()
    revived = health.after_step(mel[:4], rvq.encode(mel[:4]))
    assert revived == 4
    assert (rvq.stacked_codebooks() != before).any(2).sum() == 4


def test_living_codes_are_left_alone():
    rvq, mel = RVQ(2, 16, 8, n_mels=8, projections=False), clustered(2000)
    start_from_data(rvq, mel, torch.Generator().manual_seed(0))
    before = rvq.stacked_codebooks().detach().clone()
    health = CodebookHealth(rvq, None)
    assert sum(health.after_step(mel, rvq.encode(mel)) for _ in range(50)) == 0
    assert torch.equal(rvq.stacked_codebooks(), before)


def test_ema_codebooks_follow_the_means():
    rvq, mel = RVQ(2, 8, 8, n_mels=8, projections=False), clustered(800, size=8)
    start_from_data(rvq, mel, torch.Generator().manual_seed(0))
    start = rvq.stacked_codebooks().detach().double()
    health = CodebookHealth(rvq, None, ema_decay=0.9)
    codes = rvq.encode(mel)
    health.after_step(mel, codes)
    residual, even = mel.double(), len(mel) / 8
    for q in range(2):
        for code in range(8):
            rows = residual[codes[:, q] == code]
            total = 0.9 * start[q, code] + 0.1 * rows.sum(0) / even
            expected = total / (0.9 + 0.1 * len(rows) / even)
            torch.testing.assert_close(
                rvq.codebooks[q].weight[code].double(), expected, rtol=1e-5, atol=1e-6
            )
        residual = residual - start[q][codes[:, q]]
    assert not rvq.codebooks[0].weight.requires_grad


def test_ema_repairs_a_bad_codebook():
    rvq, mel = RVQ(1, 16, 8, n_mels=8, projections=False), clustered(2000)
    health = CodebookHealth(rvq, None, usage_decay=0.8, ema_decay=0.8)
    first = F.mse_loss(rvq(mel).mel, mel)
    for _ in range(60):
        health.after_step(mel, rvq.encode(mel))
    assert F.mse_loss(rvq(mel).mel, mel) < 0.2 * first


@pytest.mark.parametrize("when", ["built before the start", "weights loaded after steps"])
def test_ema_statistics_are_those_of_the_weights(when):
    """They start anew where codewords are not what they last made of them."""
    rvq, mel = RVQ(2, 16, 8, n_mels=8, projections=False), clustered(2000)
    health = CodebookHealth(rvq, None, ema_decay=0.99)
    if when == "weights loaded after steps":
        for _ in range(3):
            health.after_step(mel, rvq.encode(mel))
    start_from_data(rvq, mel, torch.Generator().manual_seed(0))
    start = F.mse_loss(rvq(mel).mel, mel)
    health.after_step(mel, rvq.encode(mel))
    assert F.mse_loss(rvq(mel).mel, mel) <= 1.01 * start


@pytest.mark.long
@pytest.mark.parametrize("splits", [[512, 0], [100, 412]])
def test_processes_need_not_hold_equally_many_frames(splits, tmp_path):
    alone, counts, revived = health_on_a_rank(0, [512])
    for found, found_counts, found_revived in on_two_ranks(health_on_a_rank, tmp_path, splits):
        assert torch.equal(found, alone)
        assert torch.equal(found_counts, counts)
        assert found_revived == revived > 0


def test_no_frames_change_nothing():
    rvq, mel = with_dead_codes()
    health = CodebookHealth(rvq, None, usage_decay=0.5, ema_decay=0.9)
    before = rvq.stacked_codebooks().detach().clone()
    for _ in range(9):
        assert health.after_step(mel[:0], rvq.encode(mel[:0])) == 0
    assert torch.equal(rvq.stacked_codebooks(), before)
    assert (health.counts == 1).all()


def test_state_restores_exactly():
    def run(health: CodebookHealth, steps: int) -> None:
        for _ in range(steps):
            health.after_step(mel, health.rvq.encode(mel))

    rvq, mel = with_dead_codes()
    whole = CodebookHealth(rvq, None, usage_decay=0.9, ema_decay=0.9)
    run(whole, 10)
    weights, state = rvq.state_dict(), whole.state_dict()
    weights = {name: value.clone() for name, value in weights.items()}
    state = {name: value.clone() for name, value in state.items()}
    run(whole, 40)
    other, _ = with_dead_codes()
    other.load_state_dict(weights)
    resumed = CodebookHealth(other, None, usage_decay=0.9, ema_decay=0.9)
    resumed.load_state_dict(state)
    run(resumed, 40)
    assert torch.equal(rvq.stacked_codebooks(), other.stacked_codebooks())


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_only_rows_that_reached_a_codebook_count(ema_decay):
    """Rows of items that went through fewer codebooks, and padding, whatever it holds."""
    mel, codebooks = torch.randn(300, 8), []
    reached = torch.arange(300) % 4
    states = []
    for of_all in (True, False):
        torch.manual_seed(0)
        rvq = RVQ(3, 16, 8, n_mels=8, projections=False)
        health = CodebookHealth(rvq, None, usage_decay=0.5, ema_decay=ema_decay)
        health.counts[:, 3] = 0.01  # about to die, unless used
        if of_all:
            rows = torch.where(reached[:, None] == 0, torch.nan, mel)
            codes = rvq.encode(mel)
            codes[reached[:, None] <= torch.arange(3)] = -1
        else:  # only those that reach the first codebook, and not in their order
            order = torch.randperm(300)
            order = order[reached[order] > 0]
            rows, codes = mel[order], rvq.encode(mel[order])
            codes[reached[order, None] <= torch.arange(3)] = -1
        counts = usage(codes, 16)
        health.after_step(rows, codes)
        states.append([health.counts, health.ema_sums, health.ema_counts, *counts])
        codebooks.append(rvq.stacked_codebooks())
    for a, b in zip(*states, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(*codebooks)
    expected = torch.ones(16, dtype=torch.float64)
    expected[3] = 0.01
    third = codes[codes[:, 2] >= 0, 2]
    expected = 0.5 * expected + 0.5 * torch.bincount(third, minlength=16) / (len(third) / 16)
    torch.testing.assert_close(states[0][0][2], expected)


def test_codes_are_revived_from_rows_that_reached_their_codebook():
    rvq, mel = RVQ(2, 4, 8, n_mels=8, projections=False), torch.randn(40, 8)
    health, codes = CodebookHealth(rvq, None, usage_decay=0.5), rvq.encode(mel)
    codes[3:, 1] = -1
    left = mel - rvq.codebooks[0].weight.detach()[codes[:, 0]]
    health.counts[1] = 0
    codes[:3, 1] = 0
    assert health.after_step(mel, codes) == 3
    assert {tuple(w.tolist()) for w in rvq.codebooks[1].weight[1:]} == {
        tuple(w.tolist()) for w in left[:3]
    }


def test_a_codebook_that_no_row_reached_stays_as_it_is():
    rvq, mel = RVQ(2, 4, 8, n_mels=8, projections=False), torch.randn(40, 8)
    health, codes = CodebookHealth(rvq, None), rvq.encode(mel)
    health.counts[1] = 0.001
    codes[:, 1] = -1
    before = rvq.codebooks[1].weight.detach().clone()
    assert health.after_step(mel, codes) == 0
    assert torch.equal(rvq.codebooks[1].weight, before)
    assert health.counts[1].tolist() == [0.001] * 4


def test_a_start_is_the_same_whichever_library_searches():
    mel, states = torch.randn(700, 20) @ torch.randn(20, 20), []
    for lib in (RVQ, muomni_fast.RVQ):
        rvq = lib(3, 64, 12, n_mels=20)
        start_from_data(rvq, mel, torch.Generator().manual_seed(0))
        states.append(rvq.state_dict())
    assert_same(*states)
