"""Every bound of the search is needed: with any of them planted wrong, codes are."""

import pytest
import torch
from support.oracle import midpoints, mismatches
from torch import Tensor

from muomni_fast.functional import rvq_encode
from muomni_fast.kernels.rvq.table import UNDERFLOW, repeats, search_table


def encode(rows: Tensor, codebook: Tensor, table: Tensor) -> Tensor:
    return rvq_encode(rows, codebook[None], table=table[None])[:, 0]


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
        assert wrong(rows, codebook, search_table(codebook, mark_repeats=mark)) == 0


def test_radii_that_are_too_small_give_wrong_codes():
    rows, codebook = with_long_words()
    table = search_table(codebook, mark_repeats=True)
    for words in (slice(8), slice(8, None)):  # of each kind: a bound for all would hide one
        planted = table.clone()
        planted[words, 65:67] = UNDERFLOW
        assert wrong(rows, codebook, planted) > 0


def test_a_centre_that_scores_do_not_account_for_gives_wrong_codes():
    rows, codebook = offset_midpoints()
    table = search_table(codebook, mark_repeats=True)
    scale, words = table[0, 67], table[:, :64]
    planted = table.clone()
    planted[:, 64] = words.square().sum(1) / 2 / scale  # as if rows were centred too
    assert wrong(rows, codebook, planted) > 0
    planted = table.clone()
    planted[:, 66] = planted[:, 65] = UNDERFLOW  # the rounding of the centred words
    assert wrong(rows, codebook, planted) > 0


def test_marking_the_first_of_equal_codewords_gives_wrong_codes():
    rows, codebook = with_repeats()
    table = search_table(codebook, mark_repeats=True)
    assert torch.equal(table[:, 33] == -torch.inf, repeats(codebook))
    planted = table.clone()
    planted[0::2, 33], planted[1::2, 33] = table[1::2, 33], table[0::2, 33]
    assert wrong(rows, codebook, planted) > 0


def test_tables_of_parameters_and_of_half_precision():
    codebook = torch.randn(16, 8).bfloat16().requires_grad_()
    table = search_table(codebook, mark_repeats=True)
    assert not table.requires_grad
    assert torch.equal(table, search_table(codebook.detach().float(), mark_repeats=True))


def test_repeats():
    codebook = torch.tensor([[0.0, 1], [-0.0, 1], [2, 1], [0, 1], [2, 1.5]])
    assert repeats(codebook).tolist() == [False, True, False, True, False]


def test_few_rows_are_measured_whatever_the_data(monkeypatch):
    """What makes the search fast: hard data puts hardly more rows in doubt than ordinary ones."""
    from muomni_fast.rvq import torch_search

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
        encode(x, book, search_table(book, mark_repeats=True))
        assert sum(measured) < 80, (name, sum(measured))  # 2 %
