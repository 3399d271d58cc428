"""Codes by beam search: the best of several paths, and never worse than greedy's."""

import itertools

import pytest
import torch
from support.environment import SPEECH
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import muomni_fast
from muomni_fast import reference
from muomni_fast.reference.rvq import beam as beam_module
from muomni_fast.reference.training.codebook_health import start_from_data

LIBS = pytest.mark.parametrize("lib", [reference, muomni_fast], ids=["reference", "fast"])


@pytest.fixture(scope="module")
def speech() -> torch.Tensor:
    """Mel frames of shipped recordings, (N, 128)."""
    soundfile = pytest.importorskip("soundfile")
    paths = sorted((SPEECH / "wavs").glob("*.flac"))[::6]
    audio = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths]
    return torch.cat([reference.log_mel(a, reference.MelConfig()).T for a in audio])


@pytest.fixture(scope="module")
def fitted(speech) -> muomni_fast.RVQ:
    """Codebooks by k-means of them."""
    rvq = muomni_fast.RVQ(4, 64, 128, n_mels=128, projections=False)
    start_from_data(rvq, speech, torch.Generator().manual_seed(0))
    return rvq


def error(rvq: reference.RVQ, mel: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Squared error of every row, in float64."""
    words = [book[column] for book, column in zip(rvq.codebook_weights(), codes.mT, strict=False)]
    return (mel.double() - sum(word.detach().double() for word in words)).square().sum(1)


@pytest.mark.parametrize("beam", [2, 5])
@pytest.mark.parametrize("n_codebooks", [2, 4])
def test_as_good_as_faiss_with_the_same_beam_and_codebooks(speech, fitted, beam, n_codebooks):
    faiss = pytest.importorskip("faiss")
    theirs = faiss.ResidualQuantizer(128, n_codebooks, 6)
    books = fitted.stacked_codebooks().detach()[:n_codebooks]
    faiss.copy_array_to_vector(books.numpy().ravel(), theirs.codebooks)
    theirs.is_trained, theirs.max_beam_size = True, beam
    packed = theirs.compute_codes(speech.contiguous().numpy())
    found = torch.from_numpy(faiss.unpack_bitstrings(packed, n_codebooks, 6).astype("int64"))
    codes = fitted.encode(speech, n_codebooks=n_codebooks, beam=beam)
    greedy = fitted.encode(speech, n_codebooks=n_codebooks)
    ours = error(fitted, speech, codes).mean()
    # Where two paths are as good as equal, float32's rounding chooses.
    assert ours <= (1 + 1e-6) * error(fitted, speech, found).mean()
    assert ours < error(fitted, speech, greedy).mean()


@pytest.mark.parametrize("beam", [2, 5, 40])
def test_no_row_is_worse_than_greedy(speech, fitted, beam):
    greedy, codes = fitted.encode(speech), fitted.encode(speech, beam=beam)
    assert (error(fitted, speech, codes) <= error(fitted, speech, greedy)).all()


@LIBS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_beam_of_all_codes_finds_the_best_pair(lib, dtype):
    rvq, mel = lib.RVQ(2, 8, 6, n_mels=6, projections=False).to(dtype), torch.randn(50, 6).to(dtype)
    every = torch.tensor([*itertools.product(range(8), repeat=2)])  # (64, 2)
    errors = torch.stack([error(rvq, mel, pair.expand(50, 2)) for pair in every], 1)
    codes = rvq.encode(mel, beam=8)
    assert torch.equal(codes, every[errors.argmin(1)])
    assert (codes != rvq.encode(mel)).any()


@LIBS
def test_a_beam_of_one_is_greedy(lib):
    rvq, mel = lib.RVQ(3, 32, 16, n_mels=20, bias=True), torch.randn(2, 50, 20)
    greedy = rvq.encode(mel)
    assert torch.equal(rvq.encode(mel, beam=1), greedy)
    z, books = rvq.project(mel).detach(), rvq.stacked_codebooks().detach()
    # Its one path is greedy's where float32 tells codes apart.
    paths = beam_module._paths(z.reshape(-1, 16).double(), books.double(), 1)
    assert torch.equal(paths, greedy.reshape(-1, 3))


@LIBS
def test_shapes_prefixes_and_preparation(lib):
    rvq = lib.RVQ(3, 32, 16, n_mels=20, bias=True).eval()
    mel = torch.randn(2, 9, 20)
    codes = rvq.encode(mel, beam=4)
    assert codes.shape == (2, 9, 3) and codes.dtype == torch.int64
    assert torch.equal(rvq.encode(mel.reshape(18, 20), beam=4).reshape(2, 9, 3), codes)
    alone = lib.RVQ(2, 32, 16, n_mels=20, bias=True)
    alone.proj_in, alone.codebooks = rvq.proj_in, rvq.codebooks[:2]
    assert torch.equal(rvq.encode(mel, n_codebooks=2, beam=4), alone.encode(mel, beam=4))
    assert rvq.encode(mel[:, :0], beam=4).shape == (2, 0, 3)
    if lib is muomni_fast:
        assert torch.equal(rvq.prepare().encode(mel, beam=4), codes)
    config = reference.MelConfig(n_mels=20)
    codec, audio = lib.SpeechCodec(rvq, lib.GriffinLimVocoder(config), config), torch.randn(1, 999)
    rows = reference.log_mel(audio, config).mT
    assert torch.equal(codec.encode(audio, 2, 4), rvq.encode(rows, n_codebooks=2, beam=4))


@LIBS
def test_frames_that_are_not_finite_or_huge_get_greedys_codes(lib):
    rvq, mel = lib.RVQ(3, 32, 16, n_mels=16, projections=False), torch.randn(6, 16)
    codes = rvq.encode(mel, beam=4)
    mel[1, 5], mel[4, 0], mel[2] = torch.nan, torch.inf, 1e30
    found = rvq.encode(mel, beam=4)
    assert not found[[1, 4]].any() and torch.equal(found[2], rvq.encode(mel)[2])
    assert torch.equal(found[[0, 3, 5]], codes[[0, 3, 5]])


def test_no_tensor_grows_with_rows_times_codes():
    """Nor is any of rows x codes x dimensions."""

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            new = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
            self.numbers = max([self.numbers, *(t.numel() for t in new)])
            return out

    z, books = torch.randn(6000, 16), torch.randn(2, 256, 16)
    greedy = muomni_fast.functional.rvq_encode(z, books)
    with Largest() as largest:
        beam_module.beam_search(z, books, greedy, 8)
    assert z.numel() < largest.numbers <= beam_module.BLOCK_NUMBERS < 6000 * 256


@pytest.mark.long
def test_compiles_whole_exports_and_runs_item_by_item():
    rvq, mel = muomni_fast.RVQ(3, 32, 16, n_mels=20).eval(), torch.randn(4, 9, 20)
    codes = rvq.encode(mel, n_codebooks=2, beam=4)
    encode = lambda x: rvq.encode(x, n_codebooks=2, beam=4)
    compiled = torch.compile(encode, backend="aot_eager", fullgraph=True, dynamic=True)
    assert torch.equal(compiled(mel), codes) and torch.equal(compiled(mel[:, :5]), codes[:, :5])
    assert torch.equal(torch.vmap(encode)(mel), codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encode(mel), codes)


@LIBS
@pytest.mark.parametrize(
    "beam, kind", [(0, ValueError), (1025, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_a_beam_that_is_none_is_named(lib, beam, kind):
    with pytest.raises(kind, match=f"beam: expected an integer from 1 to 1,024, got {beam}"):
        lib.RVQ(2, 8, 4, n_mels=6).encode(torch.randn(3, 6), beam=beam)


@LIBS
@pytest.mark.parametrize(
    ("beam", "error"), [(1.0, TypeError), (True, TypeError), ("5", TypeError), (0, ValueError)]
)
def test_beams_that_are_no_number_of_paths(lib, beam, error):
    rvq = lib.RVQ(2, 8, 6, n_mels=6)
    with pytest.raises(error, match="beam: expected an integer from 1 to"):
        rvq.encode(torch.randn(3, 6), beam=beam)
    with pytest.raises(error, match="beam"):  # which is known before anything is computed
        rvq.encode(torch.randn(3, 7), beam=beam)
