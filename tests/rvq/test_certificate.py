"""Every bound of the search is needed: with any of them planted wrong, codes are."""

from unittest.mock import patch

import pytest
import torch
from support.oracle import (
    far_ties,
    midpoints,
    mismatches,
    planted_errors,
    table_of_rows,
    ulps_apart,
)
from torch import Tensor

import muomni_fast
from muomni_fast.functional import rvq_encode
from muomni_fast.kernels.rvq import certificate
from muomni_fast.kernels.rvq.table import UNDERFLOW_MARGIN, repeats, row_table, search_table
from muomni_fast.reference import rvq_encode as rvq_reference
from muomni_fast.rvq import torch_projection, torch_search


def encode(rows: Tensor, codebook: Tensor, table: Tensor) -> Tensor:
    return rvq_encode(rows, codebook[None], table=table_of_rows(table))[:, 0]


def wrong(rows: Tensor, codebook: Tensor, table: Tensor) -> int:
    return mismatches(rows, codebook, encode(rows, codebook, table))


def offset_midpoints() -> tuple[Tensor, Tensor]:
    codebook = torch.randn(128, 64) + 100
    return midpoints(codebook, 4000), codebook


def with_long_words() -> tuple[Tensor, Tensor]:
    """Near-ties of codewords a thousand times as long as the others, and of those."""
    codebook = torch.randn(128, 64)
    codebook[:8] *= 1000
    return torch.cat([midpoints(codebook[:8], 2000), midpoints(codebook[8:], 2000)]), codebook


def with_repeats() -> tuple[Tensor, Tensor]:
    codebook = torch.randn(64, 32).repeat_interleave(2, 0)
    return torch.randn(1000, 32), codebook


@pytest.mark.parametrize("hard", [offset_midpoints, with_long_words, with_repeats])
def test_codes_are_right(hard):
    rows, codebook = hard()
    for mark in (False, True):
        assert wrong(rows, codebook, row_table(codebook, mark_repeats=mark)) == 0


def test_radii_that_are_too_small_give_wrong_codes():
    rows, codebook = with_long_words()
    table = row_table(codebook, mark_repeats=True)
    for words in (slice(8), slice(8, None)):  # of each kind: a bound for all would hide one
        planted = table.clone()
        planted[words, 65:67] = UNDERFLOW_MARGIN
        assert wrong(rows, codebook, planted) > 0


def test_a_centre_that_scores_do_not_account_for_gives_wrong_codes():
    rows, codebook = offset_midpoints()
    table = row_table(codebook, mark_repeats=True)
    scale, words = table[0, 67], table[:, :64]
    planted = table.clone()
    planted[:, 64] = words.square().sum(1) / 2 / scale  # as if rows were centred too
    assert wrong(rows, codebook, planted) > 0
    planted = table.clone()
    planted[:, 66] = planted[:, 65] = UNDERFLOW_MARGIN  # the rounding of the centred words
    assert wrong(rows, codebook, planted) > 0


def test_marking_the_first_of_equal_codewords_gives_wrong_codes():
    rows, codebook = with_repeats()
    table = row_table(codebook, mark_repeats=True)
    assert torch.equal(table[:, 33] == -torch.inf, repeats(codebook))
    planted = table.clone()
    planted[0::2, 33], planted[1::2, 33] = table[1::2, 33], table[0::2, 33]
    assert wrong(rows, codebook, planted) > 0


def test_without_a_table_bounds_are_needed_too(monkeypatch):
    codebook = torch.randn(128, 64) + 10
    rows = midpoints(codebook, 1000)

    def wrong_in_small_batches() -> int:
        parts = [rvq_encode(part, codebook[None])[:, 0] for part in rows.split(50)]
        return mismatches(rows, codebook, torch.cat(parts))

    assert wrong_in_small_batches() == 0
    monkeypatch.setattr(torch_search, "proof", lambda *_: certificate.Proof(0.0, 1e-30, 0.0))
    assert wrong_in_small_batches() > 0


def test_norms_that_float32_cannot_tell_are_float64s(monkeypatch):
    """Rows half-way between two words, a thousand times as far out: their squares underflow."""
    monkeypatch.setattr(torch_search, "NUMBERS_FOR_FLOAT32", 1)
    word = 1e-27 * torch.randn(8)
    codebook = torch.stack([word, word.flip(0)])  # as near to any row that is the same both ways
    half = 1e-24 * torch.randn(4000, 4)
    rows = ulps_apart(torch.cat([half, half.flip(1)], 1))
    table = row_table(codebook, mark_repeats=True)
    assert wrong(rows, codebook, table) == 0
    monkeypatch.setattr(torch_projection, "LEAST_NORM", -1)
    assert wrong(rows, codebook, table) > 0


def ties_of_long_rows(rows: int) -> tuple[Tensor, Tensor]:
    """Rows so long that float64 counts their distances to all words as equal."""
    return 1e9 * torch.randn(rows, 8), 1e-9 * torch.randn(32, 8)


@pytest.mark.parametrize("hard", [far_ties, ties_of_long_rows])
@pytest.mark.parametrize("batch", [100, 10, 1])
def test_what_float64_cannot_tell_is_a_tie(hard, batch):
    rows, codebook = hard(100)
    for mark in (None, False, True):
        table = None if mark is None else table_of_rows(row_table(codebook, mark_repeats=mark))
        parts = [rvq_encode(x, codebook[None], table=table)[:, 0] for x in rows.split(batch)]
        assert mismatches(rows, codebook, torch.cat(parts)) == 0


@pytest.mark.parametrize(
    "row, codebook",
    [
        ([2e19, 1.083e19], [[1.8e19, 0], [1e19, 1.2e19]]),
        ([2.4e38, 0], [[3e38, 0], [1.9e38, 0], [-3e38, 0], [-1.9e38, 0]]),
        ([1.5e19], [[-1e19], [1.9e19]]),
        ([2.0**62], [[0], [1400], [2.0**127]]),
        ([1e37, -1e37], [[20.0, 1], [1, 20], [-3, 4]]),
    ],
)
@pytest.mark.parametrize("rows", [1, 100])
def test_scores_that_overflow_tell_nothing(row, codebook, rows):
    x, words = torch.tensor([row] * rows), torch.tensor(codebook)
    assert mismatches(x, words, rvq_encode(x, words[None])[:, 0]) == 0
    assert wrong(x, words, row_table(words, mark_repeats=True)) == 0


def test_an_encoding_may_interrupt_another():
    """As a signal handler or a finalizer may, between any two lines: buffers are not shared."""
    rvq, mel = muomni_fast.RVQ().eval(), torch.randn(300, 128)
    codes = rvq.encode(mel)
    real, depth = torch_search.CertifiedSearch.nearest, []

    def interrupted(search: torch_search.CertifiedSearch, q: int) -> object:
        if not depth:
            depth.append(q)
            rvq.encode(torch.randn(300, 128))
            depth.pop()
        return real(search, q)

    with patch.object(torch_search.CertifiedSearch, "nearest", interrupted):
        assert torch.equal(rvq.encode(mel), codes)


def test_buffers_that_are_kept_are_small():
    for size, dim in ((2, 512), (16, 512), (128, 64), (2048, 256)):
        rvq_encode(torch.randn(5000, dim), torch.randn(1, size, dim))
        space = torch_search._kept.workspace
        held = space.augmented, space.lower, space.words
        assert (
            sum(x.numel() for x in held) <= 3 * torch_search.BLOCK_NUMBERS * torch.get_num_threads()
        )


def test_tables_of_parameters_and_of_half_precision():
    codebook = torch.randn(16, 8).bfloat16().requires_grad_()
    table = row_table(codebook, mark_repeats=True)
    assert not table.requires_grad
    assert torch.equal(table, row_table(codebook.detach().float(), mark_repeats=True))


def test_words_of_the_kernel_lose_no_more_than_their_radii_say():
    """Of few numbers some lose more than most do, and have radii above their length."""
    codebook = torch.randn(256, 2)
    rows = row_table(codebook, mark_repeats=True)  # (K, W)
    kernel = search_table(codebook, mark_repeats=True)[1]
    words, columns = kernel.flatten().split([256 * 4, 256 * 4])
    words, radius = words.view(256, 4)[:, :2], columns.view(4, 256)[1].double()
    assert not (words.contiguous().view(torch.int32) & 0x1FFF).any()  # TF32 has 10 bits
    lost = (rows[:, :2].double() - words.double()).norm(dim=1)
    assert (lost <= certificate.WORDS_LOST * radius).all()
    assert (lost > certificate.WORDS_LOST * rows[:, 3].double()).any()


def test_repeats():
    codebook = torch.tensor([[0.0, 1], [-0.0, 1], [2, 1], [0, 1], [2, 1.5]])
    assert repeats(codebook).tolist() == [False, True, False, True, False]


def test_few_rows_are_measured_whatever_the_data(monkeypatch):
    """What makes the search fast: hard data puts hardly more rows in doubt than ordinary ones."""
    measured = []
    real = torch_search.nearest_of
    monkeypatch.setattr(
        torch_search, "nearest_of", lambda *args: measured.append(len(args[0])) or real(*args)
    )
    rows, codebook = torch.randn(4000, 64), torch.randn(256, 64)
    twice, zeros, long = codebook.clone(), codebook.clone(), codebook.clone()
    twice[1::2], zeros[::2] = twice[::2], 0
    long[7] *= 1000
    broken = rows.clone()
    broken[::2], broken[1::4, 3] = torch.nan, torch.inf
    cases = {
        "ordinary": (rows, codebook),
        "every code twice": (rows, twice),
        "zeros": (rows, torch.zeros_like(codebook)),
        "half zeros": (rows, zeros),
        "one long": (rows, long),
        "offset 10": (rows + 10, codebook + 10),
        "tiny": (rows * 1e-20, codebook * 1e-20),
        "not finite": (broken, codebook),
    }
    for name, (x, book) in cases.items():
        measured.clear()
        encode(x, book, row_table(book, mark_repeats=True))
        assert sum(measured) < 80, (name, sum(measured))  # 2 %


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1.0, 3e19, 1e38])
def test_no_table_exceeds_what_its_scale_tells(factor):
    """From it the search knows which rows' scores cannot overflow."""
    torch.manual_seed(0)
    for codebook in (torch.randn(128, 64), torch.ones(16, 64), with_long_words()[1] / 1000):
        codebook = (codebook * factor).clamp(-3e38, 3e38)
        table = row_table(codebook, mark_repeats=False).double()
        radius, size, scale = table[:, 65:68].unbind(1)
        assert radius.max() < 5 * 64**0.5
        assert (size.clamp(max=2.0**127) <= 3 * 64 / scale).all()  # what overflows is infinite


def test_scores_may_err_by_all_that_they_are_said_to(monkeypatch):
    """Real products err far less. With half the reach, codes would be wrong."""
    codebook = torch.randn(128, 64)
    rows = midpoints(codebook, 2000)
    table = row_table(codebook, mark_repeats=True)
    beta, _, ties = torch_search.proof(64, "ieee")
    errors = planted_errors(rows, codebook, table, beta)
    real = torch.mm

    def product(x: Tensor, y: Tensor, *, out: Tensor) -> Tensor:
        return real(x, y, out=out).add_(errors)

    monkeypatch.setattr(torch, "mm", product)
    assert wrong(rows, codebook, table) == 0
    monkeypatch.setattr(torch_search, "proof", lambda *_: certificate.Proof(beta, beta, ties))
    assert wrong(rows, codebook, table) > 100


@pytest.mark.parametrize("dim", [3, 16, 100])
def test_ties_of_codewords_that_rows_are_far_beyond(dim):
    """Distances differ by their last bits only: they are summed as in the reference."""
    for _ in range(20):
        codebooks, x = torch.randn(1, 64, dim), torch.randn(1000, dim)
        x *= 2.0 ** torch.randint(36, 48, (1000, 1)).float()
        assert torch.equal(rvq_encode(x, codebooks), rvq_reference(x, codebooks))
