"""The quantizer: exact codes, the decoder, gradients, and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from support.oracle import (
    HARD,
    TOLERANCES,
    midpoints,
    mismatches,
    stagewise_mismatches,
)
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import muomni_fast
from muomni_fast import reference
from muomni_fast.reference.rvq.search import nearest_code


@pytest.fixture(params=[reference.RVQ, muomni_fast.RVQ], ids=["reference", "fast"])
def RVQ(request: pytest.FixtureRequest) -> type[reference.RVQ]:
    return request.param


@pytest.fixture(params=["reference", "fast"])
def search(request: pytest.FixtureRequest):
    """Rows (N, D) and a codebook (K, D) -> codes (N,), by either implementation."""
    if request.param == "reference":
        return nearest_code
    return lambda rows, book: muomni_fast.functional.rvq_encode(rows, book[None])[:, 0]


# Exactness


def test_codes_of_random_rows_match_the_oracle(RVQ):
    rvq = RVQ()
    mel = torch.randn(20_000, 128)
    codes = rvq.encode(mel)
    z = rvq.project(mel).detach()
    torch.testing.assert_close(z, F.linear(mel, rvq.proj_in.weight).detach(), rtol=1e-5, atol=1e-5)
    assert stagewise_mismatches(z, rvq.stacked_codebooks().detach(), codes) == 0


@pytest.mark.parametrize(
    "shape",
    [
        (1, 2, 8),
        (3, 17, 9),
        (8, 1024, 128),  # EnCodec
        (8, 2048, 256),  # Mimi
        (9, 1000, 8),  # DAC-like, not a power of two
        (64, 16, 64),
    ],
    ids=lambda shape: "x".join(map(str, shape)),
)
@pytest.mark.long
def test_codes_match_the_oracle_at_other_shapes(RVQ, shape):
    n_codebooks, size, dim = shape
    rvq = RVQ(n_codebooks, size, dim, n_mels=dim, projections=False)
    mel = torch.randn(70, dim)
    books = rvq.stacked_codebooks().detach()
    assert stagewise_mismatches(mel, books, rvq.encode(mel)) == 0


def test_midpoints_a_few_ulp_apart_match_the_oracle(search):
    codebook = torch.randn(128, 64)
    rows = midpoints(codebook, 4000)
    assert mismatches(rows, codebook, search(rows, codebook)) == 0
    # The case is hard: the usual float32 formula gets many of these rows wrong.
    expanded = (codebook.square().sum(1) - 2 * rows @ codebook.T).argmin(1)
    assert mismatches(rows, codebook, expanded) > 100


@pytest.mark.parametrize("case", HARD)
def test_hard_cases_match_the_oracle(search, case):
    rows, codebook = case(3000)
    assert mismatches(rows, codebook, search(rows, codebook)) == 0


def test_integer_ties_go_to_the_lowest_index(search):
    codebook = torch.randint(-2, 3, (64, 4)).float()
    codebook[40:] = codebook[:24]  # duplicates never win
    rows = torch.randint(-4, 5, (5000, 4)).float()
    codes = search(rows, codebook)
    assert mismatches(rows, codebook, codes) == 0
    assert int(codes.max()) < 40


@pytest.mark.parametrize("scale", [1e-22, 1e-18, 1e-5, 1.0, 1e18, 1e30])
def test_codes_are_exact_at_every_scale(search, scale):
    codebook = torch.randn(32, 16) * scale
    rows = torch.randn(2000, 16) * scale
    assert mismatches(rows, codebook, search(rows, codebook)) == 0


def test_offset_data_and_tiny_codewords_match_the_oracle(search):
    codebook = torch.randn(128, 64)
    rows = torch.randn(4000, 64) + 10
    assert mismatches(rows, codebook + 10, search(rows, codebook + 10)) == 0
    tiny = codebook * 1e-6
    assert mismatches(rows, tiny, search(rows, tiny)) == 0


def test_published_lyra_codes_are_reproduced(RVQ, weights):
    books = np.load(weights / "lyra_rvq" / "codebooks.npz")
    clip = np.load(next((weights / "lyra_rvq" / "reference").glob("*.npz")))
    codebooks = torch.from_numpy(books[books.files[0]]).float()  # (46, 16, 64)
    latents = next(clip[n] for n in clip.files if clip[n].shape[-1] == 64 and "recon" not in n)
    published = next(clip[n] for n in clip.files if clip[n].dtype.kind in "iu")
    rvq = RVQ(*codebooks.shape, n_mels=64, projections=False)
    for layer, codebook in zip(rvq.codebooks, codebooks, strict=True):
        layer.weight.data.copy_(codebook)
    codes = rvq.encode(torch.from_numpy(latents).float())
    assert codes.shape == published.shape
    assert int((codes != torch.from_numpy(published.astype(np.int64))).sum()) == 0


def test_lpcnet_codebooks_match_the_oracle(RVQ, weights):
    arrays = np.load(weights / "lpcnet_vq" / "pred_vq.npz")
    codebooks = torch.from_numpy(np.stack([arrays[name] for name in arrays.files])).float()
    codebooks = codebooks.reshape(-1, 2048, 18)
    rows = codebooks[0][torch.randint(2048, (500,))] + 0.1 * torch.randn(500, 18)
    encode = reference.rvq_encode if RVQ is reference.RVQ else muomni_fast.functional.rvq_encode
    codes = encode(rows, codebooks)
    assert stagewise_mismatches(rows, codebooks, codes) == 0


@pytest.mark.long
def test_a_million_rows_match_the_oracle():
    rvq, mel = muomni_fast.RVQ(), torch.randn(1_000_000, 128)
    books = rvq.stacked_codebooks().detach()
    assert stagewise_mismatches(rvq.project(mel).detach(), books, rvq.encode(mel)) == 0
    rows = mel[:, :64]
    codes = muomni_fast.functional.rvq_encode(rows, books)
    assert stagewise_mismatches(rows, books, codes) == 0


@pytest.mark.long
def test_encoding_a_million_frames_needs_little_memory():
    """At most 64 MB beyond input and output, by the peak of the process."""
    script = """
import resource, torch, muomni_fast
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
rvq, mel = muomni_fast.RVQ(), torch.randn(1_000_000, 128)
rvq.encode(mel[:1000])  # loads what is loaded late
before = peak()
codes = rvq.encode(mel)
print(peak() - before - codes.numel() * 8)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 64 * 2**20


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor any operator returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def test_no_intermediate_holds_every_row_by_every_code(RVQ):
    rvq, mel = RVQ(codebook_size=1024, codebook_dim=16), torch.randn(16, 750, 128)
    with LargestTensor() as largest:
        rvq(mel)
    rows = 16 * 750
    assert rows * 128 <= largest.elements < rows * 1024 / 4  # the input's size, far from N x K


# Shapes, dtypes and values


@pytest.mark.parametrize("lead", [(), (1,), (7,), (2, 5), (0,), (3, 0)])
def test_any_leading_shape(RVQ, lead):
    rvq = RVQ(n_codebooks=3)
    mel = torch.randn(*lead, 128)
    codes = rvq.encode(mel)
    assert codes.shape == (*lead, 3) and codes.dtype == torch.int64
    assert rvq.decode(codes).shape == mel.shape


def test_default_parameters(RVQ):
    state = RVQ().state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes == {
        "proj_in.weight": (64, 128),
        "proj_out.weight": (128, 64),
        "codebooks.0.weight": (128, 64),
        "codebooks.1.weight": (128, 64),
    }
    assert sum(value.numel() for value in state.values()) == 32_768


def test_equal_sizes_keep_projections_and_bias_is_optional(RVQ):
    assert "proj_in.weight" in RVQ(codebook_dim=64, n_mels=64).state_dict()
    assert RVQ(bias=True).state_dict()["proj_out.bias"].shape == (128,)
    assert "proj_in.weight" not in RVQ(codebook_dim=64, n_mels=64, projections=False).state_dict()


def test_codes_of_a_sequence_decode_to_a_sequence(RVQ):
    """Time is never taken for codebooks: (B, T, Q) decodes like its (B * T, Q) rows."""
    rvq = RVQ()
    codes = torch.randint(128, (3, 5, 2))
    expected = sum(rvq.codebooks[q].weight[codes[..., q]] for q in range(2)) @ rvq.proj_out.weight.T
    torch.testing.assert_close(rvq.decode(codes), expected)
    rows = rvq.decode(codes.reshape(15, 2)).reshape(3, 5, 128)
    torch.testing.assert_close(rvq.decode(codes), rows)


def test_order_of_codes_matters(RVQ):
    rvq = RVQ()
    assert not torch.allclose(rvq.decode(torch.tensor([3, 7])), rvq.decode(torch.tensor([7, 3])))


def test_coarse_decoding_uses_the_first_codebooks(RVQ):
    rvq = RVQ(n_codebooks=4)
    codes = torch.randint(128, (6, 4))
    expected = (rvq.codebooks[0].weight[codes[:, 0]]) @ rvq.proj_out.weight.T
    torch.testing.assert_close(rvq.decode(codes[:, :1]), expected)


def test_forward_agrees_with_encode_and_decode(RVQ):
    rvq, mel = RVQ(n_codebooks=4), torch.randn(2, 9, 128)
    out = rvq(mel)
    assert torch.equal(out.codes, rvq.encode(mel))
    words = [rvq.codebooks[q].weight[out.codes[..., q]] for q in range(4)]
    assert torch.equal(out.quantized, ((words[0] + words[1]) + words[2]) + words[3])
    # Straight through changes gradients, never the value.
    assert torch.equal(out.mel, F.linear(out.quantized, rvq.proj_out.weight))
    torch.testing.assert_close(out.mel, rvq.decode(out.codes))


def test_losses_are_each_stages_own(RVQ):
    rvq, mel = RVQ(n_codebooks=3), torch.randn(50, 128)
    out, residual = rvq(mel), rvq.project(mel)
    for stage in range(3):
        word = rvq.codebooks[stage].weight[out.codes[:, stage]]
        expected = (residual - word).square().mean()
        torch.testing.assert_close(out.commitment_loss[stage], expected)
        torch.testing.assert_close(out.codebook_loss[stage], expected)
        residual = residual - word
    assert out.commitment_loss.shape == out.codebook_loss.shape == (3,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_upcast(RVQ, dtype):
    rvq = RVQ()
    mel = torch.randn(400, 128).to(dtype)
    assert torch.equal(rvq.encode(mel), rvq.encode(mel.float()))
    assert rvq(mel).mel.dtype == dtype
    half = RVQ().to(dtype)
    full = RVQ()
    full.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    assert torch.equal(half.encode(mel), full.encode(mel.float()))
    rtol, atol = TOLERANCES[dtype]
    decoded = half.decode(half.encode(mel))
    assert decoded.dtype == dtype
    expected = full.decode(full.encode(mel.float()))
    torch.testing.assert_close(decoded.float(), expected, rtol=rtol, atol=atol)


def test_autocast_does_not_change_codes(RVQ):
    rvq, mel = RVQ(), torch.randn(500, 128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes, out = rvq.encode(mel), rvq(mel)
    assert torch.equal(codes, rvq.encode(mel))
    assert torch.equal(out.mel, rvq(mel).mel)


def test_any_strides(RVQ):
    rvq = RVQ()
    base = torch.randn(10, 128, 6)
    for view in (
        base.transpose(1, 2),
        base[::2].transpose(1, 2),
        base[:1].transpose(1, 2).expand(4, 6, 128),
    ):
        assert torch.equal(rvq.encode(view), rvq.encode(view.contiguous()))
        assert torch.equal(rvq(view).mel, rvq(view.contiguous()).mel)


# Gradients


def test_reconstruction_error_alone_reaches_every_parameter(RVQ):
    """The system this replaces trained on codes, which nothing can learn from."""
    rvq, mel = RVQ(), torch.randn(300, 128, requires_grad=True)
    F.mse_loss(rvq(mel).mel, mel.detach()).backward()
    for name, parameter in rvq.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert mel.grad is not None and mel.grad.abs().max() > 0


def test_ema_codebooks_leave_gradients_to_the_projections(RVQ):
    rvq, mel = RVQ(), torch.randn(300, 128)
    rvq.codebooks.requires_grad_(False)
    F.mse_loss(rvq(mel).mel, mel).backward()
    assert rvq.proj_in.weight.grad.abs().max() > 0 and rvq.proj_out.weight.grad.abs().max() > 0
    assert rvq.codebooks[0].weight.grad is None


def test_later_stages_keep_their_commitment_gradient(RVQ):
    """A residual taken from the straight-through output would be constant after the first stage."""
    rvq, mel = RVQ(n_codebooks=3), torch.randn(100, 128)
    for stage in range(3):
        rvq.zero_grad()
        rvq(mel).commitment_loss[stage].backward()
        assert rvq.proj_in.weight.grad.abs().max() > 0, stage


def test_gradients_match_the_formulas(RVQ):
    rvq, mel = RVQ().double(), torch.randn(40, 128, dtype=torch.float64)
    weight = torch.randn(40, 128, dtype=torch.float64)
    out = rvq(mel)
    (out.mel * weight).sum().backward()
    to_quantized = weight @ rvq.proj_out.weight.detach()  # (N, D)
    tolerance = dict(rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(rvq.proj_in.weight.grad, to_quantized.T @ mel, **tolerance)
    torch.testing.assert_close(
        rvq.proj_out.weight.grad, weight.T @ out.quantized.detach(), **tolerance
    )
    for stage in range(2):
        one_hot = F.one_hot(out.codes[:, stage], 128).double()
        grad = rvq.codebooks[stage].weight.grad
        torch.testing.assert_close(grad, one_hot.T @ to_quantized, **tolerance)


# Faults


def test_wrong_arguments_are_named(RVQ):
    rvq = RVQ()
    for bad in (torch.randn(3, 64), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"mel: expected \(\.\.\., 128\), got"):
            rvq.encode(bad)
        with pytest.raises(ValueError, match=r"mel: expected \(\.\.\., 128\), got"):
            rvq(bad)
    for dtype in (torch.int32, torch.bool, torch.float8_e4m3fn):
        with pytest.raises(TypeError, match=str(dtype)):
            rvq.encode(torch.zeros(3, 128).to(dtype))
    with pytest.raises(ValueError, match="precision.*'sloppy'"):
        rvq.encode(torch.randn(3, 128), precision="sloppy")
    with pytest.raises(ValueError, match="mel is on meta, codebooks is on cpu"):
        rvq.encode(torch.randn(3, 128, device="meta"))


def test_functions_check_their_weights():
    mel, books = torch.randn(3, 8), torch.randn(2, 4, 8)
    for encode in (reference.rvq_encode, muomni_fast.functional.rvq_encode):
        with pytest.raises(
            ValueError, match=r"proj_in_weight: expected \(8, n_mels\), got \(1, 8\)"
        ):
            encode(mel, books, torch.randn(1, 8))
        for bad in (books[0], books[:, :1]):
            with pytest.raises(ValueError, match=r"codebooks: expected \(Q, K >= 2, D\), got"):
                encode(mel, bad)
    for decode in (reference.rvq_decode, muomni_fast.functional.rvq_decode):
        with pytest.raises(
            ValueError, match=r"proj_out_weight: expected \(n_mels, 8\), got \(5, 1\)"
        ):
            decode(torch.zeros(3, 2, dtype=torch.int64), books, torch.randn(5, 1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.int32])
def test_codes_of_any_integer_type_decode(RVQ, dtype):
    rvq, codes = RVQ(), torch.randint(128, (5, 2))
    assert torch.equal(rvq.decode(codes.to(dtype)), rvq.decode(codes))


def test_no_frames_no_loss(RVQ):
    out = RVQ()(torch.zeros(0, 128))
    assert out.mel.shape == (0, 128) and out.codes.shape == (0, 2)
    assert out.commitment_loss.tolist() == out.codebook_loss.tolist() == [0, 0]


def test_codes_out_of_range_are_refused(RVQ):
    rvq = RVQ()
    for bad in (-1, 128):
        with pytest.raises(IndexError, match=f"0 to 127, got .*{bad}"):
            rvq.decode(torch.tensor([[5, bad]]))
    with pytest.raises(TypeError, match="float32"):
        rvq.decode(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="1 to 2"):
        rvq.decode(torch.zeros(4, 3, dtype=torch.int64))


def test_frames_that_are_not_finite_get_code_zero(RVQ):
    rvq, mel = RVQ(), torch.randn(6, 128)
    clean = rvq.encode(mel)
    mel[1, 5], mel[4, 0] = torch.nan, torch.inf
    codes = rvq.encode(mel)
    assert (codes[[1, 4]] == 0).all()
    assert torch.equal(codes[[0, 2, 3, 5]], clean[[0, 2, 3, 5]])
    with pytest.raises(ValueError, match="2 of 6 frames"):
        rvq.encode(mel, check_finite=True)


def test_frames_that_are_not_finite_have_what_their_codes_decode_to(RVQ):
    rvq, mel = RVQ(), torch.randn(6, 128)
    mel[1, 5], mel[4, 0] = torch.nan, torch.inf
    out = rvq(mel)
    torch.testing.assert_close(out.mel, rvq.decode(out.codes))


@pytest.mark.parametrize("part", ["mel", "quantized", "commitment_loss"])
def test_frames_that_are_not_finite_make_no_gradient_of_codewords_nan(RVQ, part):
    """Nor, where no loss is made of what is left of them, of the frames."""
    rvq, mel = RVQ(), torch.randn(6, 128)
    mel[1, 5], mel[4, 0] = torch.nan, torch.inf
    mel.requires_grad_()
    getattr(rvq(mel), part).sum().backward()
    for weight in rvq.codebook_weights():
        assert weight.grad is None or weight.grad.isfinite().all()
    if part == "mel":
        assert not mel.grad[[1, 4]].any() and mel.grad[[0, 2, 3, 5]].isfinite().all()
        assert mel.grad[0].any() and rvq.codebooks[0].weight.grad[0].any()


@pytest.mark.parametrize("compiled", [False, True])
def test_the_reference_refuses_vmap_by_name(compiled):
    rvq, mel = reference.RVQ(2, 16, 8, n_mels=12), torch.randn(4, 5, 12)
    for run in (rvq.encode, lambda x: rvq(x).mel):
        each = torch.compile(run, backend="aot_eager") if compiled else run
        with pytest.raises(NotImplementedError, match="give it all items at once"):
            torch.vmap(each)(mel)


def test_weights_that_are_not_finite_do_not_load(RVQ):
    state = RVQ().state_dict()
    state["codebooks.1.weight"][3, 3] = torch.nan
    with pytest.raises(
        RuntimeError, match=r"codebooks\.1\.weight holds a value that is not finite"
    ):
        RVQ().load_state_dict(state)


def test_constructor_refuses(RVQ):
    with pytest.raises(ValueError, match="128, 64"):
        RVQ(projections=False)
    for argument in ("n_codebooks", "codebook_size", "codebook_dim", "n_mels"):
        with pytest.raises(ValueError, match=argument):
            RVQ(**{argument: 0})


def test_state_dicts_are_interchangeable():
    mel = torch.randn(100, 128)
    slow, fast = reference.RVQ(bias=True), muomni_fast.RVQ(bias=True)
    fast.load_state_dict(slow.state_dict())
    assert torch.equal(fast.encode(mel), slow.encode(mel))
