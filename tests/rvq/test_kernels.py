"""The quantizer's Triton kernels: on a GPU, or interpreted with products rounded as tensor cores
round them."""

import pkgutil

import numpy as np
import pytest
import torch
from support.environment import DEVICE, ON_KERNELS
from support.interpreter import round_like_tensor_cores, truncated
from support.oracle import (
    HARD,
    far_ties,
    midpoints,
    mismatches,
    stagewise_mismatches,
    ulps_apart,
    unexcused_mismatches,
)
from torch import Tensor
from torch.nn import functional as F

import muomni_fast
from muomni_fast import reference
from muomni_fast.kernels import launch
from muomni_fast.kernels.rvq import certificate
from muomni_fast.kernels.rvq.code_sums import code_sums
from muomni_fast.kernels.rvq.configs import ENCODE
from muomni_fast.kernels.rvq.decode import rvq_decode
from muomni_fast.kernels.rvq.encode import encode_constants, rvq_encode
from muomni_fast.kernels.rvq.table import search_table

pytestmark = ON_KERNELS


def count() -> Tensor:
    return torch.zeros(1, dtype=torch.int32)


def encode(rows: Tensor, codebooks: Tensor, table: Tensor | None = None, **options) -> Tensor:
    return rvq_encode(rows, codebooks, table, None, None, count(), **options)[0]


# Exactness


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 700])
def test_default_shape_with_projection(rows):
    rvq, mel = reference.RVQ(bias=True), torch.randn(rows, 128)
    weight, books = rvq.proj_in.weight.detach(), rvq.stacked_codebooks().detach()
    for bias in (None, 3 * rvq.proj_in.bias.detach()):
        codes, _ = rvq_encode(mel, books, None, weight, bias, count())
        assert unexcused_mismatches(mel, weight, books, codes, "tf32x3", bias) == 0


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((1, 16, 8), 130),
        ((3, 17, 9), 130),
        ((2, 1024, 128), 130),  # EnCodec, two of its stages
        ((1, 2048, 256), 40),  # Mimi
        ((2, 1000, 8), 130),  # DAC-like, not a power of two
        ((64, 16, 64), 70),
        ((1, 4096, 18), 40),
        ((2, 20, 512), 20),
        ((2, 3, 300), 20),
    ],
    ids=str,
)
def test_other_shapes(shape, rows):
    books, rows = torch.randn(shape), torch.randn(rows, shape[2])
    assert stagewise_mismatches(rows, books, encode(rows, books)) == 0


def test_near_ties():
    books = torch.randn(1, 128, 64)
    rows = midpoints(books[0], 250)
    assert mismatches(rows, books[0], encode(rows, books)[:, 0]) == 0
    # Without the certificate the same scores get most of these rows wrong.
    assert mismatches(rows, books[0], encode(rows, books, exact=False)[:, 0]) > 50


@pytest.mark.parametrize("case", HARD)
def test_hard_cases(case):
    rows, book = case(120)
    assert mismatches(rows, book, encode(rows, book[None])[:, 0]) == 0


def test_candidates_at_one_place_of_their_blocks():
    """Four at the same place of four blocks of codewords, any of which is the nearest of some."""
    block_k = ENCODE[launch.architecture(DEVICE), 16].block_k
    books = torch.randn(1, 4 * block_k, 16)
    books[0, 5::block_k] = books[0, 5] + 1e-4 * torch.randn(4, 16)
    rows = books[0, 5] + 0.1 * torch.randn(100, 16)
    codes = encode(rows, books)
    assert stagewise_mismatches(rows, books, codes) == 0
    assert set(codes.flatten().tolist()) == {5 + block * block_k for block in range(4)}


def test_exact_ties_go_to_the_lowest_index():
    books = torch.randint(-2, 3, (1, 64, 4)).float()
    books[0, 40:] = books[0, :24]
    rows = torch.randint(-4, 5, (400, 4)).float()
    codes = encode(rows, books)
    assert stagewise_mismatches(rows, books, codes) == 0 and int(codes.max()) < 40


def test_offset_data_and_tiny_codewords():
    books, rows = torch.randn(1, 128, 64), torch.randn(100, 64) + 10
    assert stagewise_mismatches(rows, books + 10, encode(rows, books + 10)) == 0
    assert stagewise_mismatches(rows, books * 1e-6, encode(rows, books * 1e-6)) == 0


@pytest.mark.parametrize("scale", [1e-22, 1e-18, 1e18, 1e30])
def test_every_scale(scale):
    books, rows = torch.randn(1, 32, 16) * scale, torch.randn(70, 16) * scale
    assert stagewise_mismatches(rows, books, encode(rows, books)) == 0


def test_worse_products_than_the_bound_allows_are_caught(monkeypatch):
    """What these tests rely on: with a bound of nothing, or operands of three bits under tf32's
    bound, codes go wrong and the oracle sees it."""
    books = torch.randn(1, 128, 64)
    rows = torch.cat([torch.randn(300, 64), midpoints(books[0], 300)])
    assert mismatches(rows, books[0], encode(rows, books)[:, 0]) == 0
    with monkeypatch.context() as patch:
        nothing = certificate.KernelProof(0.0, 0.0, 0.0, 0.0, 0.0)
        patch.setattr(certificate, "kernel_proof", lambda *_: nothing)
        encode_constants.cache_clear()
        assert mismatches(rows, books[0], encode(rows, books)[:, 0]) > 0
    encode_constants.cache_clear()
    if DEVICE.type == "cpu":
        round_like_tensor_cores(monkeypatch, tf32="3 bits")
        assert mismatches(rows, books[0], encode(rows, books)[:, 0]) > 0


def sphere() -> tuple[Tensor, Tensor]:
    """Tiny rows, and words whose squared norms differ by less than their float32 halves can say."""
    books = torch.randn(1, 32, 16)
    return 2.0**-25 * torch.randn(40, 16), books / books.norm(dim=-1, keepdim=True)


def near_ties() -> tuple[Tensor, Tensor]:
    """Rows between the two words nearest to them, in few dimensions, where errors add up."""
    books = torch.randn(1, 6, 4)
    rows = midpoints(books[0], 100)
    nearest = torch.cdist(rows, books[0]).topk(2, largest=False).values
    return rows[(nearest[:, 1] - nearest[:, 0]) < 1e-5], books


def few_far_ties() -> tuple[Tensor, Tensor]:
    rows, codebook = far_ties(20)
    return rows, codebook[None]


def of_kernel(table: Tensor, column: int) -> Tensor:
    """A column that the kernel reads, (Q, K): 0 biases, 1 radii, 2 sizes, 3 scales."""
    _, _, size, width = table.shape
    start = size * (width - 4 + column)
    return table[:, 1].flatten(1)[:, start : start + size]


@pytest.mark.parametrize(
    ("case", "column", "factor"),
    [(near_ties, 1, 0.1), (sphere, 2, 0.0), (few_far_ties, 2, 0.0)],
    ids=["radius", "size", "size of a far centre"],
)
def test_smaller_bounds_than_the_tables_are_caught(case, column, factor):
    """Each column that bounds scores is needed: codes are right with it, and wrong without."""
    rows, books = case()
    table = search_table(books, mark_repeats=True)
    assert stagewise_mismatches(rows, books, encode(rows, books, table)) == 0
    of_kernel(table, column).mul_(factor)
    assert stagewise_mismatches(rows, books, encode(rows, books, table)) > 0


def test_the_wrong_one_of_two_equal_codewords_marked_is_caught():
    books = torch.randn(1, 32, 16)
    books[0, 20] = books[0, 3]
    rows = books[0, [3, 20]] + 0.01 * torch.randn(2, 16)
    table = search_table(books, mark_repeats=True)
    assert encode(rows, books, table).tolist() == [[3], [3]]
    radii = of_kernel(table, 1)[0]
    radii[[3, 20]] = radii[[20, 3]]
    assert encode(rows, books, table).tolist() == [[20], [20]]


def test_every_score_is_within_its_bound():
    """The inequality the certificate rests on, for each precision (bench/gpu.py asks a GPU)."""
    rows, books = torch.randn(2000, 64, device="cpu"), torch.randn(128, 64, device="cpu")
    products = (rows.double() @ books.double().T).numpy()
    scale = (rows.norm(dim=1)[:, None] * books.norm(dim=1)).double().numpy()
    for precision in ("tf32", "bf16"):
        rounded = truncated(rows.numpy(), precision) @ truncated(books.numpy(), precision).T
        worst = (np.abs(rounded - products) / scale).max()
        bound = certificate.score_beta(64, precision)
        assert bound / 40 < worst < bound, precision


def test_lyra_and_lpcnet(weights):
    arrays = np.load(weights / "lyra_rvq" / "codebooks.npz")
    clip = np.load(next((weights / "lyra_rvq" / "reference").glob("*.npz")))
    books = torch.from_numpy(arrays[arrays.files[0]]).float()  # (46, 16, 64)
    latents = next(clip[n] for n in clip.files if clip[n].shape[-1] == 64 and "recon" not in n)
    published = next(clip[n] for n in clip.files if clip[n].dtype.kind in "iu")
    codes = encode(torch.from_numpy(latents).float()[:100].to(DEVICE), books.to(DEVICE))
    assert torch.equal(codes.cpu(), torch.from_numpy(published[:100].astype(np.int64)))
    arrays = np.load(weights / "lpcnet_vq" / "pred_vq.npz")
    books = torch.from_numpy(np.stack([arrays[n] for n in arrays.files])).float()
    books = books.reshape(-1, 2048, 18).to(DEVICE)
    rows = books[0][torch.randint(2048, (60,))] + 0.1 * torch.randn(60, 18)
    assert stagewise_mismatches(rows, books, encode(rows, books)) == 0


@pytest.mark.parametrize("config", sorted(set(ENCODE.values()), key=str), ids=str)
def test_every_tile_size(config):
    """The smallest and largest tiles of the table on one problem with ragged edges."""
    books = torch.randn(2, 80, 16)
    rows = torch.cat([torch.randn(config.block_n, 16), midpoints(books[0], 1)])
    codes, sums = rvq_encode(rows, books, None, None, None, count(), with_sums=True, config=config)
    assert stagewise_mismatches(rows, books, codes) == 0
    for stage in range(2):
        rows = rows - books[stage][codes[:, stage]]
        torch.testing.assert_close(sums[stage], rows.square().sum())


# Bad input


def test_frames_that_are_not_finite_get_code_zero_and_are_counted():
    books, rows, nonfinite = torch.randn(3, 32, 16), torch.randn(70, 16), count()
    clean = encode(rows, books)
    rows[3, 5], rows[64, 0], rows[69, 1] = torch.nan, torch.inf, -torch.inf
    codes, _ = rvq_encode(rows, books, None, None, None, nonfinite)
    bad = torch.tensor([3, 64, 69])
    assert (codes[bad] == 0).all() and int(nonfinite) == 3
    keep = torch.ones(70, dtype=torch.bool).index_fill(0, bad, False)
    assert torch.equal(codes[keep], clean[keep])


def test_codebooks_of_nan_give_codes_that_exist():
    """As training that diverged leaves them: a code out of range would be an address."""
    codebooks = torch.full((2, 20, 16), torch.nan)
    codes = encode(torch.randn(5, 16), codebooks)
    assert ((codes >= 0) & (codes < 20)).all()


def test_fast_codes_keep_the_policy_for_frames_that_are_not_finite():
    books, rows, nonfinite = torch.randn(3, 32, 16), torch.randn(70, 16), count()
    rows[3, 5], rows[69, 1] = torch.nan, torch.inf
    codes, _ = rvq_encode(rows, books, None, None, None, nonfinite, exact=False)
    assert not codes[[3, 69]].any() and int(nonfinite) == 2


def test_frames_that_are_finite_are_never_counted():
    """Not even where their squares overflow, which scores then do as well."""
    rows, nonfinite = torch.full((4, 16), 3e38), count()
    rows[1], rows[2, 1:], rows[3] = -3e38, 0, 0
    books = torch.randn(2, 32, 16)
    codes, _ = rvq_encode(rows, books, None, None, None, nonfinite)
    assert stagewise_mismatches(rows, books, codes) == 0 and int(nonfinite) == 0
    codes, _ = rvq_encode(rows, books, None, None, None, nonfinite, exact=False)
    assert ((codes >= 0) & (codes < 32)).all() and int(nonfinite) == 0


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one with every row that is measured against a whole codebook, and by another where
    that takes float64."""
    if DEVICE.type == "cuda":
        pytest.skip("watches the interpreter")
    found = []

    def watch(name: str) -> None:
        search = pkgutil.resolve_name(name)

        def counted(row, *arguments, **named):
            found.append(row)
            return search(row, *arguments, **named)

        monkeypatch.setattr(name, counted)

    for name in ("nearest_in_float32", "nearest_in_float64"):
        watch(f"muomni_fast.kernels.rvq.encode.{name}")
    return found


def test_rows_that_are_not_finite_are_searched_nowhere(searched):
    books, rows, nonfinite = torch.randn(3, 32, 16), torch.randn(150, 16), count()
    rows[torch.arange(150), torch.randint(16, (150,))] = torch.nan
    rows[::3], rows[1::3, 4] = torch.inf, -torch.inf
    codes, _ = rvq_encode(rows, books, None, None, None, nonfinite)
    assert not codes.any() and int(nonfinite) == 150 and not searched


def test_two_equal_codewords_are_settled_at_once(searched):
    words = torch.randn(2, 32, 16)
    for books in (words.repeat_interleave(2, 1), words.repeat(1, 2, 1)):
        # Near one word, so that only its copy is a candidate besides.
        rows = books[0][torch.randint(64, (200,))] + 0.01 * torch.randn(200, 16)
        codes = encode(rows, books[:1])
        assert mismatches(rows, books[0], codes[:, 0]) == 0 and not searched
        # Between two words there are four candidates.
        rows = words[0, :16].lerp(words[0, 16:], 0.5001)
        assert stagewise_mismatches(rows, books, encode(rows, books)) == 0
        assert len(searched) >= 16
        found = len(searched)
        searched.clear()
        # Two, where copies are marked.
        table = search_table(books, mark_repeats=True)
        assert stagewise_mismatches(rows, books, encode(rows, books, table)) == 0
        assert len(searched) < found / 4
        searched.clear()


def test_codewords_that_are_almost_equal_are_still_told_apart():
    """By one unit in the last place of one element."""
    books = torch.randn(1, 64, 16)
    books[0, 32:] = books[0, :32]
    other = torch.arange(32) + 32
    books[0, other, 7] = torch.nextafter(books[0, :32, 7], torch.tensor(torch.inf))
    rows = ulps_apart(books[0][torch.randint(64, (200,))])
    assert stagewise_mismatches(rows, books, encode(rows, books)) == 0


def test_biases_from_float32_sums_would_not_do():
    """Two words whose squared norms differ by less than their float32 sums err."""
    books = torch.full((1, 2, 512), 0.98 * 2.0**-24).sqrt()
    books[:, 1] = (1.02 * 2.0**-24) ** 0.5
    books[:, :, :32] = 1
    books[0, 0, 0] = 1 + 3 * 2.0**-22
    rows = torch.zeros(5, 512)
    for table in (None, search_table(books, mark_repeats=True)):
        assert stagewise_mismatches(rows, books, encode(rows, books, table)) == 0


@pytest.mark.parametrize("marked", [None, False, True])
def test_a_row_has_the_code_it_has_alone(marked):
    """In any batch, at any place of it, with a table or none. The projection halves and pads, as
    numpy's products, which are the interpreter's, round a row as its place in the tile has it."""
    books, weight = torch.randn(2, 40, 16), torch.eye(16, 24) / 2
    books[:, 30] = books[:, 11]
    pool = torch.cat([torch.randn(237, 16), midpoints(books[0], 20)])[torch.randperm(257)]
    pool = torch.cat([2 * pool, torch.randn(257, 8)], 1)
    table = None if marked is None else search_table(books, mark_repeats=marked)
    run = lambda mel: rvq_encode(mel, books, table, weight, None, count())[0]
    codes = rvq_encode(pool, books, None, weight, None, count())[0]
    for rows, start in ((257, 30), (129, 100), (128, 3), (63, 190), (1, 256)):
        places = torch.arange(257).roll(start)[:rows]
        assert torch.equal(run(pool[places]), codes[places]), rows
    for row in range(0, 257, 64):
        assert torch.equal(run(pool[row : row + 1]), codes[row : row + 1])


def test_any_strides_and_dtypes():
    rvq = reference.RVQ(bias=True)
    weight, bias, books = (
        t.detach() for t in (rvq.proj_in.weight, rvq.proj_in.bias, rvq.stacked_codebooks())
    )
    base = torch.randn(40, 2, 128)
    unaligned = torch.randn(20 * 128 + 1)[1:].view(20, 128)
    for mel in (
        unaligned,
        base[:, 1],
        base[::2, 0],
        base[:1, 0].expand(9, 128),
        base[:, 0].T.contiguous().T,
    ):
        codes = rvq_encode(mel, books, None, weight, bias, count())[0]
        dense = rvq_encode(mel.contiguous(), books, None, weight, bias, count())[0]
        assert torch.equal(codes, dense)
    for dtype in (torch.float16, torch.bfloat16):
        half = base[:, 0].to(dtype)
        codes = rvq_encode(half, books, None, weight, bias, count())[0]
        assert torch.equal(codes, rvq_encode(half.float(), books, None, weight, bias, count())[0])
    strided = torch.stack([bias, -bias], 1)[:, 0]
    table = search_table(books, mark_repeats=True).transpose(1, 2).contiguous().transpose(1, 2)
    mel = base[:, 0].contiguous()
    expected = rvq_encode(mel, books, None, weight, bias, count())[0]
    assert torch.equal(
        rvq_encode(mel, books, table, weight.T.contiguous().T, strided, count())[0], expected
    )
    assert rvq_encode(base[:0, 0], books, None, weight, bias, count())[0].shape == (0, 2)


# Decoding and sums


@pytest.mark.parametrize("shape", [(2, 128, 64, 128), (3, 17, 9, 20), (2, 40, 200, 30)], ids=str)
def test_decode(shape):
    n_codebooks, size, dim, n_mels = shape
    books, weight, bias = torch.randn(shape[:3]), torch.randn(n_mels, dim), torch.randn(n_mels)
    for rows in (1, 64, 65):
        codes = torch.randint(size, (rows, n_codebooks))
        sums = sum(books[q][codes[:, q]] for q in range(n_codebooks))
        assert torch.equal(rvq_decode(codes, books, None, None, count()), sums)
        frames = rvq_decode(codes, books, weight, bias, count())
        exact = F.linear(sums.double(), weight.double(), bias.double())
        assert (frames - exact).abs().max() < 2e-6 * exact.abs().max()
    coarse = rvq_decode(codes[:, :1], books, None, None, count())
    assert torch.equal(coarse, books[0][codes[:, 0]])


def test_decode_counts_codes_out_of_range_and_reads_nothing_for_them():
    books, codes, invalid = torch.randn(2, 16, 8), torch.randint(16, (40, 2)), count()
    bad = codes.clone()
    bad[3, 0], bad[7, 1], bad[39, 1] = -1, 16, 2**40
    frames = rvq_decode(bad, books, None, None, invalid)
    expected = rvq_decode(codes, books, None, None, count())
    expected[3], expected[7] = books[1][codes[3, 1]], books[0][codes[7, 0]]
    expected[39] = books[0][codes[39, 0]]
    assert torch.equal(frames, expected) and int(invalid) == 3


@pytest.mark.parametrize(
    ("rows", "size", "dim"),
    [(1, 16, 8), (700, 16, 8), (300, 5, 130), (1900, 3, 8)],  # the last in four splits
)
def test_code_sums(rows, size, dim):
    codes, values = torch.randint(size, (rows,)) // 2 * 2, torch.randn(rows, dim)
    sums = code_sums(codes, values, size)
    torch.testing.assert_close(sums, reference.RVQ.code_sums(codes, values, size))
    assert torch.equal(sums, code_sums(codes, values, size))
    codes[0] = size  # out of range: left out
    assert torch.equal(code_sums(codes, values, size), code_sums(codes[1:], values[1:], size))


# Training


def test_training_through_the_kernels_equals_the_reference(monkeypatch):
    """Three steps of a tiny model, forward and backward, against plain PyTorch; in the last one
    items go through some codebooks, and end early."""
    slow = reference.RVQ(3, 20, 12, n_mels=24, bias=True)
    fast = muomni_fast.RVQ(3, 20, 12, n_mels=24, bias=True)
    fast.load_state_dict(slow.state_dict())
    optimisers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (slow, fast)]
    for partly in ((), (), (torch.tensor([3, 2]), torch.tensor([17, 30]))):
        mel, losses = torch.randn(2, 33, 24), []
        for model, optimiser in zip((slow, fast), optimisers, strict=True):
            monkeypatch.setenv("MUOMNI_FAST_BACKEND", "auto" if model is slow else "triton")
            optimiser.zero_grad()
            out = model(mel, *partly)
            loss = F.mse_loss(out.mel, mel) + 0.25 * out.commitment_loss.sum()
            loss = loss + out.codebook_loss.sum() + out.quantized.square().mean()
            loss.backward()
            losses.append(loss.detach())
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
        for (name, a), b in zip(fast.named_parameters(), slow.parameters(), strict=True):
            assert (a.grad - b.grad).norm() <= 1e-5 * b.grad.norm(), name
        for optimiser in optimisers:
            optimiser.step()


def test_modules_run_the_kernels_when_asked(monkeypatch):
    rvq = muomni_fast.RVQ(2, 32, 16, n_mels=20, bias=True).eval()
    mel = torch.randn(3, 7, 20)
    codes, frames = rvq.encode(mel), rvq.decode(rvq.encode(mel))
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    assert muomni_fast.explain("rvq_encode", mel, rvq.stacked_codebooks()).endswith("kernel")
    assert torch.equal(rvq.encode(mel), codes)
    assert torch.equal(rvq.encode(mel, n_codebooks=1), codes[..., :1])
    torch.testing.assert_close(rvq.decode(codes), frames)
    rvq.prepare()
    assert torch.equal(rvq.encode(mel), codes)
    assert torch.equal(rvq.encode(mel, n_codebooks=1), codes[..., :1])
    torch.testing.assert_close(rvq.decode(codes), frames)
    rvq.decode(torch.tensor([[0, 99]]))
    with pytest.raises(muomni_fast.CodeRangeError, match="1 codes out of range"):
        muomni_fast.raise_if_errors()
    mel[0, 0, 0] = torch.nan
    rvq.encode(mel)
    assert muomni_fast.raise_if_errors() == 1 and muomni_fast.raise_if_errors() == 0
