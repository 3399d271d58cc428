"""A single row with a table, on a CPU: the same codes as in a batch, and bounds that are needed.

`test_certificate.py` has rows one by one for what overflows, and for what float64 cannot tell."""

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import pytest
import torch
from support.oracle import far_ties, midpoints, mismatches, planted_errors, table_of_rows
from torch import Tensor

import muomni_fast
from muomni_fast.functional import rvq_encode
from muomni_fast.kernels.rvq import certificate
from muomni_fast.kernels.rvq.table import UNDERFLOW_MARGIN, row_table, search_table
from muomni_fast.rvq import torch_row
from muomni_fast.rvq.torch_row import certain_codes

Case = tuple[Tensor, Tensor]  # rows and a codebook


def codes(rows: Tensor, codebook: Tensor, table: Tensor) -> Tensor:
    whole = table_of_rows(table)
    return torch.cat([rvq_encode(x, codebook[None], table=whole)[:, 0] for x in rows.split(1)])


def wrong(rows: Tensor, codebook: Tensor, table: Tensor) -> int:
    return mismatches(rows, codebook, codes(rows, codebook, table))


def certain(rows: Tensor, codebook: Tensor, table: Tensor) -> list[bool]:
    """Which rows are not left to the search of many."""
    whole = table_of_rows(table)
    found = [certain_codes(x[None], [codebook], whole, "ieee") for x in rows]
    return [one is not None for one in found]


def ordinary() -> Case:
    return torch.randn(300, 64), torch.randn(128, 64)


def near_ties() -> Case:
    codebook = torch.randn(128, 64)
    return midpoints(codebook, 500), codebook


def far_away() -> Case:
    codebook = torch.randn(128, 64) + 100
    return midpoints(codebook, 500), codebook


def long_words() -> Case:
    codebook = torch.randn(128, 64)
    codebook[:8] *= 1000
    return torch.cat([midpoints(codebook[:8], 300), midpoints(codebook[8:], 300)]), codebook


def repeated() -> Case:
    codebook = torch.randn(64, 32).repeat_interleave(2, 0)
    return torch.randn(300, 32), codebook


def tiny() -> Case:
    codebook = torch.randn(64, 16) * 1e-20
    return midpoints(codebook, 200), codebook


def huge() -> Case:
    codebook = torch.randn(64, 16) * 1e18
    return midpoints(codebook, 200), codebook


def tied() -> Case:
    return far_ties(100)


@pytest.mark.parametrize(
    "case", [ordinary, near_ties, far_away, long_words, repeated, tiny, huge, tied]
)
@pytest.mark.parametrize("mark", [True, False])
def test_codes_are_right(case: Callable[[], Case], mark):
    rows, codebook = case()
    assert wrong(rows, codebook, row_table(codebook, mark_repeats=mark)) == 0


def test_which_rows_are_certain():
    """Ordinary ones are, even of codewords that repeat; near-ties are not."""
    for case, least, most in ((ordinary, 290, 300), (repeated, 290, 300), (near_ties, 0, 250)):
        rows, codebook = case()
        table = row_table(codebook, mark_repeats=True)
        assert least <= sum(certain(rows, codebook, table)) <= most, case.__name__


def test_rows_that_no_score_tells_anything_of():
    rvq, mel = muomni_fast.RVQ(3, 32, 16, n_mels=16, projections=False).eval(), torch.randn(6, 16)
    mel[0, 3], mel[1, 5], mel[2], mel[3] = torch.nan, torch.inf, 0, 3e38
    expected = rvq.encode(mel)
    rvq.prepare()
    assert torch.equal(torch.cat([rvq.encode(row) for row in mel.split(1)]), expected)
    books = rvq.stacked_codebooks().detach()
    table = search_table(books, mark_repeats=True)
    with np.errstate(over="ignore"):
        found = [certain_codes(row[None], books.unbind(), table, "ieee") for row in mel]
    assert found[:4] == [None] * 4
    assert found[4:] == expected[4:].tolist()
    wide = torch.randn(1, 4, 5000)
    table = search_table(wide, mark_repeats=True)
    assert certain_codes(wide[0, :1], wide.unbind(), table, "ieee") is None


def test_radii_that_are_too_small_give_wrong_codes():
    rows, codebook = long_words()
    planted = row_table(codebook, mark_repeats=True)
    planted[:8, 65:67] = UNDERFLOW_MARGIN
    assert wrong(rows, codebook, planted) > 0


def test_scores_may_err_by_all_that_they_are_said_to(monkeypatch):
    """As in test_certificate.py, of products with one row."""
    codebook = torch.randn(128, 64)
    rows = midpoints(codebook, 300)
    table = row_table(codebook, mark_repeats=True)
    beta, _, ties = certificate.proof(64, "ieee")
    errors = planted_errors(rows, codebook, table, beta)
    real = torch.mm

    def product(x: Tensor, columns: Tensor, *, out: Tensor) -> Tensor:
        (which,) = (rows == x[:, :64]).all(1).nonzero()[0].tolist()
        return real(x, columns, out=out).add_(errors[which])

    monkeypatch.setattr(torch, "mm", product)
    assert wrong(rows, codebook, table) == 0
    monkeypatch.setattr(torch_row, "proof", lambda *_: certificate.Proof(beta, beta, ties))
    assert wrong(rows, codebook, table) > 10


@pytest.mark.parametrize("rows", [1, 100])
def test_whatever_the_process_is_set_to(rows):
    """Torch's default dtype, and numpy's way with numbers that underflow."""
    rvq = muomni_fast.RVQ(2, 31, 13, n_mels=13, projections=False).eval()
    mel = torch.randn(rows, 13)
    mel[0, :4] = 1e-30
    expected = rvq.encode(mel)
    rvq.prepare()
    torch.set_default_dtype(torch.float64)
    try:
        with np.errstate(all="raise"):
            assert torch.equal(rvq.encode(mel), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_encoding_may_interrupt_another():
    rvq, mel = muomni_fast.RVQ().eval().prepare(), torch.randn(1, 128)
    expected, real, depth = rvq.encode(mel), torch.mm, []

    def interrupted(*args: Tensor, out: Tensor) -> Tensor:
        if not depth:
            depth.append(1)
            rvq.encode(torch.randn(1, 128))
            depth.pop()
        return real(*args, out=out)

    with patch.object(torch, "mm", interrupted):
        assert torch.equal(rvq.encode(mel), expected)
