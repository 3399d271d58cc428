"""Projections that are nearly exact: as near as they say, and the search needs to know it."""

import functools
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.oracle import midpoints, ulps_apart
from torch import Tensor

import muomni_fast
from muomni_fast import reference
from muomni_fast.kernels.rvq.table import search_table
from muomni_fast.reference.rvq.projection import project
from muomni_fast.rvq import table_views, torch_backend, torch_row, torch_search
from muomni_fast.rvq.table_views import views_of
from muomni_fast.rvq.torch_projection import ROUNDED, near_projection, row_norms
from muomni_fast.rvq.torch_search import CertifiedSearch


def in_the_middle(rows: int) -> tuple[Tensor, Tensor]:
    """Sums half-way between two float32, or so near that float64 sums cannot tell."""
    mel = 2.0 ** torch.tensor([0.0, -24, -60, -23]).repeat(rows, 1)
    mel[:, 2] *= torch.randint(-1, 2, (rows,))
    return mel, torch.randint(-1, 2, (9, 4)).float()


DTYPES = torch.float32, torch.float64
DATA = {
    "random": lambda: (torch.randn(600, 70), torch.randn(9, 70)),
    "cancelling": lambda: (torch.ones(20, 70), torch.randn(9, 35).repeat_interleave(2, 1) * 1e6),
    "in the middle": lambda: in_the_middle(100),
    "half precision": lambda: (torch.randn(20, 70).half(), torch.randn(9, 70).half().float()),
    "tiny": lambda: (1e-25 * torch.randn(20, 70), 1e-18 * torch.randn(9, 70)),
    "tiny, cancelling": lambda: (
        torch.full((20, 70), 1e-25),
        1e15 * torch.randn(9, 35).repeat(1, 2),
    ),
    "none": lambda: (torch.zeros(3, 70), torch.zeros(9, 70)),
    "huge": lambda: (1e30 * torch.randn(20, 70), 1e-10 * torch.randn(9, 70)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_rows_are_as_near_as_is_said(name, biased, dtype):
    mel, weight = DATA[name]()
    weight[:, 1::2] *= -1
    bias = weight[:, 0] * 3 if biased else None
    near = torch.empty(len(mel), 9)
    off = near_projection(mel, weight, bias, near, dtype)
    exact = project(mel, weight, bias)
    assert (off > 0).all()
    apart = (near.double() - exact.double()).norm(dim=1)
    assert (apart <= off + ROUNDED * near.double().norm(dim=1)).all()


@pytest.mark.parametrize("terms", [1, 8, 4096, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_norms_are_good_to_a_thousandth(terms, dtype):
    """Rows that float32 can tell beside rows that it cannot: tiny, huge, not finite, zero."""
    scales = torch.exp2(torch.arange(-120, 120, 1.5))[:, None]
    x = (scales * torch.rand(len(scales), terms + 1)).to(dtype)[:, :terms]
    x[::50, 0], x[10], x[20] = torch.inf, torch.nan, 0
    for rows in (x, x[[30, 60]], x[::2], x.t().contiguous().t()):
        found = row_norms(rows)
        torch.testing.assert_close(
            found, rows.double().square().sum(1).sqrt(), rtol=1e-3, atol=0, equal_nan=True
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_is_seen(dtype):
    mel, near = torch.randn(6, 12), torch.empty(6, 5)
    mel[0, 1], mel[2, 0], mel[4] = torch.nan, torch.inf, 3e38
    off = near_projection(mel, 1e3 * torch.randn(5, 12), None, near, dtype)
    told = near.isfinite().all(1) & off.isfinite()
    assert told.tolist() == [False, True, False, True, False, True]


@pytest.mark.parametrize("rows", [1, 40])
def test_rows_that_tell_nothing_are_projected_exactly(rows):
    """Whose float32 sums overflow on the way, or whose projection does; NaN; and one whose float64
    sum rounds to infinity, while the exact one is a little less."""
    mel = torch.tensor([[3e38, 3e38, 1, 0.5], [3e38, -3e38, 0, 0], [torch.nan, 0, 0, 0]])
    most = torch.finfo(torch.float32).max
    mel = torch.cat([mel, torch.tensor([[most / 2, 0, 2.0**103, 2.0**40]])])
    fast = muomni_fast.RVQ(2, 4, 2, n_mels=4).eval()
    with torch.no_grad():
        fast.proj_in.weight.copy_(torch.tensor([[2.0, -2, 1, -1], [-2, 2, 0, 1]]))
        fast.codebooks[0].weight[3] = torch.tensor([3e38, -3e38])
    expected = reference.RVQ.encode(fast, mel)
    mel = mel.repeat_interleave(rows, 0)
    for _ in range(2):
        codes = torch.cat([fast.encode(part) for part in mel.split(rows)])
        assert torch.equal(codes[::rows], expected)
        fast.prepare()


def near_ties() -> tuple[muomni_fast.RVQ, Tensor]:
    """Frames whose projection is a few roundings from the middle of two codewords, of the first
    codebook and of the second."""
    rvq = muomni_fast.RVQ(2, 32, 16, n_mels=16, bias=True).eval().requires_grad_(False)
    rvq.proj_in.weight.copy_(torch.eye(16))
    rvq.proj_in.bias.zero_()
    first, second = rvq.stacked_codebooks()
    later = first[torch.randint(32, (400,))] + midpoints(second / 64, 400)
    rvq.codebooks[1].weight.div_(64)
    return rvq, ulps_apart(torch.cat([midpoints(first, 400), later]))


def towards_another_code(mel: Tensor, rvq: muomni_fast.RVQ, length: Tensor) -> Tensor:
    """Steps (N, D) of such lengths from rows to where another code of a codebook is nearer."""
    residual, step = mel.double(), torch.zeros(len(mel), 16, dtype=torch.float64)
    gap = torch.full((len(mel),), torch.inf, dtype=torch.float64)
    for codebook in rvq.stacked_codebooks().double():
        distance = torch.cdist(residual, codebook)
        two, codes = distance.topk(2, largest=False)
        way = codebook[codes[:, 1]] - codebook[codes[:, 0]]
        nearer = (two[:, 1] - two[:, 0]) / way.norm(dim=1) < gap
        gap = torch.where(nearer, (two[:, 1] - two[:, 0]) / way.norm(dim=1), gap)
        step = torch.where(nearer[:, None], way / way.norm(dim=1, keepdim=True), step)
        residual = residual - codebook[codes[:, 0]]
    return step * length[:, None]


@pytest.fixture(params=[1, 50, 800, "coarse", "all codes"])
def wrong(request, monkeypatch) -> Callable[..., int]:
    """Counts near-ties that get other codes than the reference's when `planted` replaces their
    projection: of rows and quantizer, it gives rows near them, and how near."""
    rvq, mel = near_ties()
    expected = reference.RVQ.encode(rvq, mel)
    rvq.prepare()
    batch = request.param if isinstance(request.param, int) else len(mel)
    if request.param == "coarse":
        monkeypatch.setattr(torch_backend, "ROWS_FOR_COARSE", batch)
    if request.param == "all codes":
        monkeypatch.setattr(torch_search, "MOST_CANDIDATES", 0)

    def count(planted: Callable[[Tensor, muomni_fast.RVQ], tuple[Tensor, Tensor]]) -> int:
        def near(rows: Tensor, _: Tensor, bias: Tensor, out: Tensor, dtype: torch.dtype) -> Tensor:
            moved, off = planted(rows, rvq)
            out.copy_(moved)
            return off

        for where in (torch_row, torch_search):
            monkeypatch.setattr(where, "near_projection", near)
        codes = torch.cat([rvq.encode(part) for part in mel.split(batch)])
        return int((codes != expected).any(1).sum())

    return count


def test_rows_may_be_off_by_all_that_is_said(wrong):
    """Real ones are off far less. With less said, codes would be wrong."""

    def moved(rows: Tensor, rvq: muomni_fast.RVQ, said: float = 1.0) -> tuple[Tensor, Tensor]:
        length = 1e-5 * rows.double().norm(dim=1)
        return rows + towards_another_code(rows, rvq, 0.99 * length), said * length

    assert wrong(moved) == 0
    assert wrong(functools.partial(moved, said=0.1)) > 0


def test_numbers_may_be_rounded_the_other_way(wrong, monkeypatch):
    def moved(rows: Tensor, rvq: muomni_fast.RVQ) -> tuple[Tensor, Tensor]:
        far = rows + towards_another_code(rows, rvq, 1e-3 * rows.double().norm(dim=1))
        off = torch.full((len(rows),), 2.0**-110, dtype=torch.float64)
        return torch.nextafter(rows, far.float()), off

    assert wrong(moved) == 0
    for where in (torch_row, torch_search):
        monkeypatch.setattr(where, "ROUNDED", 0.0)
    assert wrong(moved) > 0


@pytest.fixture
def settled(monkeypatch) -> list[int]:
    """How many rows are projected exactly, of every time that some are."""
    counts, real = [], CertifiedSearch._settle
    monkeypatch.setattr(
        CertifiedSearch, "_settle", lambda search, r: counts.append(len(r)) or real(search, r)
    )
    return counts


@pytest.mark.parametrize("rows", [1000, 4000])
def test_few_rows_are_projected_exactly(settled, rows):
    """What makes it fast: less than one in a thousand."""
    rvq, mel = muomni_fast.RVQ().eval().prepare(), torch.randn(4000, 128)
    for kind in (mel, mel + 10, mel * 1e-20):
        settled.clear()
        codes = torch.cat([rvq.encode(part) for part in kind.split(rows)])
        assert torch.equal(codes, reference.RVQ.encode(rvq, kind))
        assert sum(settled) < 4


@pytest.mark.parametrize("prepared", [False, True])
def test_many_rows_are_searched_in_buffers_that_stay(prepared, monkeypatch):
    """Also those that are searched for again, of which there may be few."""
    made, real = [], torch_search._Workspace
    monkeypatch.setattr(torch_search, "_Workspace", lambda *args: made.append(args) or real(*args))
    rvq = muomni_fast.RVQ().eval()
    if prepared:
        rvq.prepare()
    for _ in range(3):
        rvq.encode(torch.randn(4000, 128))
    assert len(made) <= 1


def test_rows_that_mostly_stay_undecided_are_projected_in_float64(monkeypatch):
    """From the second block on: then nearly all would be searched for twice."""
    monkeypatch.setattr(torch_search, "BLOCK_NUMBERS", 1 << 19)
    coarse, real = [], CertifiedSearch.start
    monkeypatch.setattr(
        CertifiedSearch,
        "start",
        lambda search, *a: coarse.append(search.coarse) or real(search, *a),
    )
    rvq, mel = muomni_fast.RVQ(2, 128, 64).eval().requires_grad_(False), torch.randn(8192, 128)
    assert torch.equal(rvq.encode(mel), reference.RVQ.encode(rvq, mel))
    assert len(coarse) > 2 and all(coarse[:-1]) and not coarse[-1]
    coarse.clear()
    rvq.codebooks[0].weight[64:] = rvq.codebooks[0].weight[:64]
    assert torch.equal(rvq.encode(mel), reference.RVQ.encode(rvq, mel))
    assert sum(coarse) == 1


@pytest.mark.parametrize("dim", [64, 1])
@pytest.mark.parametrize("in_torch", [False, True])
def test_what_is_not_finite_among_many_rows(in_torch, dim, monkeypatch):
    """Counted once each; and finite rows whose sums overflow."""
    if in_torch:
        monkeypatch.setattr(torch_search, "THREADS_FOR_TORCH", 1)
    rvq = muomni_fast.RVQ(codebook_dim=dim).eval().requires_grad_(False)
    mel = torch.randn(3000, 128)
    mel[5], mel[70, 3], mel[71, 0], mel[2999] = torch.nan, torch.inf, torch.nan, -torch.inf
    mel[::50] *= 1e38
    rvq.proj_in.weight.mul_(8)
    codebooks, found = [*rvq.stacked_codebooks()], {}
    for rows in (100, 3000):
        count = torch.zeros((), dtype=torch.int64)
        parts = [
            torch_backend.encode(part, codebooks, None, rvq.proj_in.weight, None, count)[0]
            for part in mel.split(rows)
        ]
        found[rows] = torch.cat(parts), int(count)
    assert torch.equal(found[100][0], reference.RVQ.encode(rvq, mel))
    assert torch.equal(found[100][0], found[3000][0])
    assert 4 <= found[100][1] == found[3000][1]


def test_frames_whose_squares_overflow_are_not_counted():
    rvq, count = muomni_fast.RVQ().eval().requires_grad_(False), torch.zeros((), dtype=torch.int64)
    mel, codebooks = 1e25 * torch.randn(3000, 128), [*rvq.stacked_codebooks()]
    codes, _ = torch_backend.encode(mel, codebooks, None, rvq.proj_in.weight, None, count)
    assert torch.equal(codes, reference.RVQ.encode(rvq, mel)) and count == 0


def test_views_are_kept_as_long_as_their_table():
    table, other = (search_table(torch.randn(2, 8, 4), mark_repeats=True) for _ in range(2))
    views = views_of(table, 4, Tensor.numpy)
    assert views_of(table, 4, Tensor.numpy) is views
    assert views_of(other, 4, Tensor.numpy) is not views
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(views_of, table, 4, Tensor.numpy).result() is views
    assert views_of(table, 4, Tensor.detach) is not views
    table.mul_(2)
    assert views_of(table, 4, Tensor.numpy).scales == (2 * torch.tensor(views.scales)).tolist()
    places = {id(table), id(other)}
    assert places <= table_views._kept.keys()
    del table, other
    gc.collect()
    assert not places & table_views._kept.keys()


def test_views_of_tables_that_do_not_tell_when_they_change():
    with torch.inference_mode():
        table = search_table(torch.randn(1, 8, 4), mark_repeats=True)
        views_of(table, 4, Tensor.numpy)
        table.mul_(2)
        assert (
            views_of(table, 4, Tensor.numpy).scales == table[:, 0].view(1, 8, 8)[:, 7, 0].tolist()
        )


def test_a_prepared_quantizer_that_is_prepared_again():
    rvq, mel = muomni_fast.RVQ().eval(), torch.randn(3, 128)
    for _ in range(3):
        rvq.prepare()
        for rows in (mel, mel[:1]):
            assert torch.equal(rvq.encode(rows), reference.RVQ.encode(rvq, rows))
        with torch.no_grad():
            rvq.proj_in.weight.copy_(torch.randn(64, 128))
            rvq.codebooks[0].weight.copy_(torch.randn(128, 64))


def test_the_projection_is_read_at_every_call():
    """Even where writes into its memory leave no trace."""
    rvq, mel = muomni_fast.RVQ().eval(), torch.randn(1, 128)
    table = search_table(rvq.stacked_codebooks(), mark_repeats=True)
    for _ in range(2):
        codes = muomni_fast.functional.rvq_encode(
            mel, rvq.stacked_codebooks(), rvq.proj_in.weight, table=table
        )
        assert torch.equal(codes, reference.RVQ.encode(rvq, mel))
        rvq.proj_in.weight.data.copy_(torch.randn(64, 128))


def test_views_of_memory_that_has_moved():
    """To other processes, or by `.data`: neither changes a tensor's version."""
    first, second = torch.randn(2, 2, 32, 16).unbind()
    mel = torch.randn(50, 16)
    table = search_table(first, mark_repeats=True)
    views = views_of(table, 16, Tensor.numpy)
    table.share_memory_()
    assert views_of(table, 16, Tensor.numpy) is not views
    for books in (first, second):
        table.data = search_table(books, mark_repeats=True)
        expected = reference.rvq_encode(mel, books)
        for rows in (1, 50):
            parts = [
                muomni_fast.functional.rvq_encode(x, books, table=table) for x in mel.split(rows)
            ]
            assert torch.equal(torch.cat(parts), expected)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("rows", [1, 10, 100])
def test_codewords_whose_scale_is_flushed_to_zero(prepared, rows):
    rvq = muomni_fast.RVQ(2, 16, 8, n_mels=8, projections=False).eval().requires_grad_(False)
    rvq.codebooks[0].weight[0, 0] = 2.5e38
    mel = torch.randn(rows, 8)
    expected = reference.RVQ.encode(rvq, mel)
    try:
        torch.set_flush_denormal(True)
        codes = (rvq.prepare() if prepared else rvq).encode(mel)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(codes, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_cancels_is_off_by_more_than_its_rounding(dtype):
    """Of terms of 1e5, sums of 1e-9: float64 has lost more than float32 rounds."""
    frame, weight, bias = 1e5 * torch.randn(512), torch.randn(16, 512), torch.randn(16)
    total = weight.double() @ frame.double() + bias.double()
    for _ in range(2):  # a column each that takes away what float32 has of the sum
        column = -total.float()
        weight, frame = torch.cat([weight, column[:, None]], 1), torch.cat([frame, torch.ones(1)])
        total = total + column.double()
    beyond = 0
    for _ in range(100):
        order, near = torch.randperm(len(frame)), torch.empty(1, 16)
        mel, columns = frame[order][None], weight[:, order]
        off = near_projection(mel, columns, bias, near, dtype)
        apart = (near.double() - project(mel, columns, bias).double()).norm()
        rounding = ROUNDED * near.double().norm()
        assert apart <= off + rounding
        beyond += int(apart > 2.0**-110 + rounding)
    assert beyond > 50


def test_a_row_is_projected_exactly_once(settled):
    rvq = muomni_fast.RVQ(6, 16, 8, n_mels=12).eval().requires_grad_(False)
    for codebook in rvq.codebooks:
        codebook.weight[8:] = codebook.weight[:8]  # unmarked, every row is in doubt
    mel = torch.randn(300, 12)
    assert torch.equal(rvq.encode(mel), reference.RVQ.encode(rvq, mel))
    assert sum(settled) == 300
