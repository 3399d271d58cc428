"""A quantizer's first codebooks alone, and rows that go through some of them: `encode` that stops,
quantizer dropout, and padding."""

import pytest
import torch
from torch import Tensor

import muomni_fast
from muomni_fast import functional, reference

LIBS = pytest.mark.parametrize("lib", [reference, muomni_fast], ids=["reference", "fast"])
SHAPE = dict(n_codebooks=4, codebook_size=16, codebook_dim=12, n_mels=20, bias=True)
COUNTS = torch.tensor([4, 1, 3, 2, 1])  # codebooks of each item


def made(lib, **changes) -> reference.RVQ:
    torch.manual_seed(0)
    return lib.RVQ(**SHAPE | changes)


def prefix_of(rvq: reference.RVQ, k: int) -> reference.RVQ:
    """A quantizer of the first k codebooks, sharing parameters."""
    alone = type(rvq)(**rvq.config | {"n_codebooks": k})
    alone.proj_in, alone.proj_out = rvq.proj_in, rvq.proj_out
    alone.codebooks = rvq.codebooks[:k]
    return alone


def learned(rvq: reference.RVQ, mel: Tensor, out: reference.RVQOutput) -> list[Tensor]:
    """Gradients of everything that `out` has one for."""
    loss = (out.mel * out.mel.detach().cos()).sum() + out.quantized.sin().sum()
    order = torch.arange(1.0, 1 + len(out.commitment_loss))
    loss = loss + (order * out.commitment_loss - out.codebook_loss / order).sum()
    return list(torch.autograd.grad(loss, [mel, *rvq.parameters()], materialize_grads=True))


# encode(n_codebooks=k)


@LIBS
@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("rows", [7, 300])  # with and without a table of codewords
def test_encoding_stops_after_so_many(lib, prepared, rows):
    rvq, mel = made(lib).eval(), torch.randn(rows, 20)
    codes = rvq.encode(mel)
    if prepared and lib is muomni_fast:
        rvq.prepare()
    for k in range(1, 5):
        assert torch.equal(rvq.encode(mel, n_codebooks=k), codes[:, :k])
    for wrong in (0, 5, -1):
        with pytest.raises(ValueError, match=f"n_codebooks: expected .* 1 to 4, got {wrong}"):
            rvq.encode(mel, n_codebooks=wrong)
    with pytest.raises(TypeError, match="n_codebooks: expected an integer .*, got 2.0"):
        rvq.encode(mel, n_codebooks=2.0)


def test_what_is_left_out_is_not_searched(monkeypatch):
    from muomni_fast.rvq.torch_search import CertifiedSearch

    searched = []
    nearest = CertifiedSearch.nearest
    note = lambda self, q: searched.append(q) or nearest(self, q)
    monkeypatch.setattr(CertifiedSearch, "nearest", note)
    made(muomni_fast).encode(torch.randn(70, 20), n_codebooks=2)
    assert searched == [0, 1]


# forward(n_codebooks=): quantizer dropout


@LIBS
def test_all_codebooks_are_what_is_without_asking(lib):
    rvq, mel = made(lib), torch.randn(5, 9, 20, requires_grad=True)
    expected = rvq(mel)
    grads = learned(rvq, mel, expected)
    for n_codebooks in (4, torch.full((5,), 4), [4] * 5):
        out = rvq(mel, n_codebooks)
        assert torch.equal(out.codes, expected.codes)
        for name in ("mel", "quantized", "commitment_loss", "codebook_loss"):
            torch.testing.assert_close(getattr(out, name), getattr(expected, name))
        for a, b in zip(learned(rvq, mel, out), grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@LIBS
def test_an_item_goes_through_its_first_codebooks_as_through_a_smaller_quantizer(lib):
    rvq, mel = made(lib), torch.randn(5, 9, 20)
    out = rvq(mel, COUNTS)
    squares, rows = torch.zeros(4), torch.zeros(4)
    for item, k in enumerate(COUNTS.tolist()):
        alone = prefix_of(rvq, k)(mel[item])
        assert torch.equal(out.codes[item, :, :k], alone.codes)
        assert (out.codes[item, :, k:] == -1).all()
        torch.testing.assert_close(out.mel[item], alone.mel)
        torch.testing.assert_close(out.quantized[item], alone.quantized)
        squares[:k] += 9 * alone.commitment_loss.detach()
        rows[:k] += 9
    for loss in (out.commitment_loss, out.codebook_loss):
        torch.testing.assert_close(loss, squares / rows)
    same = rvq(mel, 2)
    assert same.codes.shape == (5, 9, 4) and (same.codes[..., 2:] == -1).all()
    assert same.commitment_loss[2:].tolist() == same.codebook_loss[2:].tolist() == [0, 0]
    torch.testing.assert_close(same.mel, prefix_of(rvq, 2)(mel).mel)


@pytest.mark.parametrize("projections", [True, False])
@pytest.mark.parametrize("lengths", [None, [9, 0, 4, 1, 8]])
def test_gradients_equal_autograd_through_the_reference(projections, lengths):
    changes = {} if projections else dict(n_mels=12, bias=False, projections=False)
    grads = []
    for lib in (reference, muomni_fast):
        rvq = made(lib, **changes)
        mel = torch.randn(5, 9, rvq.n_mels, generator=torch.Generator().manual_seed(1))
        grads.append(learned(rvq, mel.requires_grad_(), rvq(mel, COUNTS, lengths)))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@LIBS
def test_codebooks_that_no_row_reaches_learn_nothing(lib):
    rvq, mel = made(lib), torch.randn(6, 20, requires_grad=True)
    grads = learned(rvq, mel, rvq(mel, [1, 2, 1, 2, 2, 1]))
    names = ["mel", *dict(rvq.named_parameters())]
    for name, grad in zip(names, grads, strict=True):
        assert bool(grad.any()) == (name not in ("codebooks.2.weight", "codebooks.3.weight")), name


@pytest.mark.long
def test_compiles_whole_and_runs_item_by_item():
    rvq, mel = made(muomni_fast), torch.randn(5, 9, 20)
    lengths = torch.tensor([9, 0, 4, 1, 8])
    whole = rvq(mel, COUNTS, lengths)
    compiled = torch.compile(rvq, backend="aot_eager", fullgraph=True)(mel, COUNTS, lengths)
    torch.testing.assert_close(compiled.mel, whole.mel)
    assert torch.equal(compiled.codes, whole.codes)
    each = torch.vmap(lambda x, n, length: rvq(x[None], n[None], length[None]).codes[0])
    assert torch.equal(each(mel, COUNTS, lengths), whole.codes)


# forward(lengths=): padding


@LIBS
@pytest.mark.parametrize("filling", [0.0, 1e4, torch.nan])
@pytest.mark.parametrize("n_codebooks", [None, COUNTS[:3]], ids=["all", "some"])
def test_padding_changes_nothing(lib, filling, n_codebooks):
    rvq, lengths = made(lib), [6, 0, 2]
    frames = torch.randn(8, 20)
    items = frames.split(lengths)
    padded = torch.full((3, 7, 20), filling)
    inside = torch.arange(7) < torch.tensor(lengths)[:, None]
    padded[inside] = frames
    padded.requires_grad_()
    frames.requires_grad_()
    counts = [4] * 3 if n_codebooks is None else n_codebooks.tolist()
    out = rvq(padded, n_codebooks, torch.tensor(lengths))
    by_row = [k for item, k in zip(items, counts, strict=True) for _ in item]
    alone = rvq(frames, by_row)
    assert torch.equal(out.codes[inside], alone.codes)
    assert (out.codes[~inside] == -1).all() and not out.mel[~inside].any()
    assert not out.quantized[~inside].any()
    torch.testing.assert_close(out.mel[inside], alone.mel)
    for name in ("commitment_loss", "codebook_loss"):
        torch.testing.assert_close(getattr(out, name), getattr(alone, name))
    grads, expected = learned(rvq, padded, out), learned(rvq, frames, alone)
    assert not grads[0][~inside].any()
    for a, b in zip([grads[0][inside], *grads[1:]], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@LIBS
def test_no_frames_at_all(lib):
    out = made(lib)(torch.randn(2, 3, 20), lengths=[0, 0])
    assert out.commitment_loss.tolist() == out.codebook_loss.tolist() == [0] * 4
    assert (out.codes == -1).all() and not out.mel.any()


@LIBS
@pytest.mark.parametrize("name", ["n_codebooks", "lengths"])
@pytest.mark.parametrize(
    "wrong", [["a", "b"], [None, 1], [[1], [1, 2]], [10**30, 1], b"ab"], ids=str
)
def test_lists_that_hold_no_integers_are_named(lib, name, wrong):
    with pytest.raises((TypeError, ValueError), match=f"^{name}: expected .*got "):
        made(lib)(torch.randn(2, 3, 20), **{name: wrong})


@LIBS
def test_wrong_counts_and_lengths_are_named(lib):
    rvq, mel = made(lib), torch.randn(2, 3, 20)
    for wrong, kind, message in (
        (0, ValueError, "n_codebooks: expected an integer from 1 to 4, got 0"),
        (True, TypeError, "n_codebooks: expected an integer"),
        ("2", TypeError, "n_codebooks: expected an integer"),
        ([1, 5], ValueError, "n_codebooks: expected 1 to 4, got 1 to 5"),
        (torch.tensor([0, 2]), ValueError, "n_codebooks: expected 1 to 4, got 0 to 2"),
        (torch.tensor([1.0, 2.0]), TypeError, "n_codebooks: expected an integer tensor"),
        ([1, 2, 3], ValueError, r"n_codebooks: expected one, or \(2,\), got \(3,\)"),
    ):
        with pytest.raises(kind, match=message):
            rvq(mel, wrong)
    with pytest.raises(ValueError, match="n_codebooks: expected one for a single frame"):
        rvq(mel[0, 0], [1])
    for wrong, message in (
        ([4, 1], "lengths: expected 0 to 3 frames, got 1 to 4"),
        ([3], r"lengths: expected \(2,\), got \(1,\)"),
        (1.5, "lengths: expected one for each item, got 1.5"),
        ("ab", "lengths: expected one for each item, got 'ab'"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            rvq(mel, lengths=wrong)
    with pytest.raises(ValueError, match=r"lengths: expected mel \(B, T, n_mels\), got \(3, 20\)"):
        rvq(mel[0], lengths=[3])
    quantize = lib.rvq_quantize if lib is reference else functional.rvq_quantize
    out = quantize(torch.randn(2, 12), torch.randn(3, 8, 12), n_codebooks=1)
    assert (out.codes[:, 0] >= 0).all() and (out.codes[:, 1:] == -1).all()
