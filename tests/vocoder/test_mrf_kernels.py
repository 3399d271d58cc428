"""The vocoder's residual blocks and whole generators as Triton kernels: on a GPU, or interpreted
with products rounded as tensor cores round them."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.environment import DEVICE, ON_KERNELS
from support.interpreter import nearest_tf32, truncated
from support.kernel_checks import all_close, assert_close, doubles, with_gradients
from support.oracle import snr_db
from support.small_vocoders import strips
from support.vocoder_problems import generator as problem
from torch import Tensor, nn

from muomni_fast import reference
from muomni_fast.kernels.vocoder import configs as conv_configs
from muomni_fast.kernels.vocoder import conv, mrf_step, mrf_strip, taps, weight_grad
from muomni_fast.kernels.vocoder.configs import ConvConfig
from muomni_fast.reference.vocoder import hifigan
from muomni_fast.vocoder import generator as generators
from muomni_fast.vocoder import triton_backend as backend
from muomni_fast.vocoder.plan import plan_of_blocks, plan_of_generator
from muomni_fast.vocoder.shapes import Blocks, Network

pytestmark = ON_KERNELS

MRFS = {
    "1": ("1", (3, 5), ((1, 2), (1, 2))),
    "1-V1": ("1", (3, 7, 11), ((1, 3, 5),) * 3),
    "1-depth-1": ("1", (1, 3), ((1,), (4,))),
    "2-V3": ("2", (3, 5, 7), ((1, 2), (2, 6), (3, 12))),
    "2-depth-1": ("2", (3,), ((2,),)),
    "2-depth-3": ("2", (5, 3), ((1, 2, 3), (1, 3, 1))),
}
RAGGED = {
    "1-ragged-slope-0.3": ("1", (3, 5), ((1, 2), (1,)), 0.3),
    "1-ragged": ("1", (3, 5), ((1, 2), (1,))),
    "2-ragged": ("2", (3, 1, 5), ((1,), (2,), (1, 2, 3))),
    "1-slope-0": ("1", (3, 5), ((1, 2),) * 2, 0.0),
    "2-slope-0.3": ("2", (3, 5), ((1, 2),) * 2, 0.3),
}
Blocky = tuple[Any, ...]  # the arguments of `Blocks`


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles whose edges a few rows reach."""
    monkeypatch.setattr(conv_configs, "INTERPRETER_TILE", ConvConfig(16, 16, 64, 4, 1))


# Residual blocks


def mrf(case: Blocky, channels: int) -> tuple[reference.MRF, list[Tensor], Blocks]:
    """The module in float64, its weights and biases in float32, and its shape."""
    kind, taps, dilations, *slope = case
    module = reference.MRF(channels, taps, dilations, kind, *slope)
    tensors = [t.detach() for t in weights_of(module)]
    return module.double(), tensors, Blocks(*case)


def weights_of(module: reference.MRF) -> list[Tensor]:
    return plan_of_blocks(list(module.resblocks)).tensors()


def set_weights(module: reference.MRF, tensors: list[Tensor]) -> None:
    for own, tensor in zip(weights_of(module), tensors, strict=True):
        own.data.copy_(tensor)


@pytest.mark.parametrize("rows", [1, 17])
@pytest.mark.parametrize("case", [*MRFS, *RAGGED])
def test_mrf_forward_and_gradients(case, rows):
    module, tensors, blocks = mrf({**MRFS, **RAGGED}[case], 8)
    x, grad = torch.randn(2, 8, rows), torch.randn(2, 8, rows)
    (d,) = doubles(x)
    exact = with_gradients(module(d), grad, d, *weights_of(module))
    out, kept = backend.level(x, backend.pack_blocks(tensors, blocks), blocks, keep=True)
    needs = [True] * len(tensors)
    d_x, grads = backend.level_grad(grad, x, kept, tensors, blocks, needs)
    all_close([out, d_x, *grads], exact)


@pytest.mark.parametrize("channels", [6, 24, 48])
def test_mrf_of_any_width(monkeypatch, channels):
    monkeypatch.setattr(conv_configs, "INTERPRETER_TILE", ConvConfig(32, 32, 32, 4, 1))
    module, tensors, blocks = mrf(MRFS["1"], channels)
    x = torch.randn(2, channels, 17)
    assert_close(
        backend.level(x, backend.pack_blocks(tensors, blocks), blocks, keep=False)[0],
        module(x.double()).detach(),
    )


def sum_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted products that do not depend on a row's place in the tile, as a BLAS's do."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self, a, b, d, *_):
        product = a.data.astype(np.float64) @ b.data.astype(np.float64)
        return TensorHandle((product + d.data).astype(np.float32), d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.mark.parametrize(
    ("case", "channels", "rows", "length", "programs"),
    [
        ("1", 8, 50, 16, 2),
        ("1", 24, 17, 13, 1),
        ("1", 8, 1, 16, 4),
        ("1-V1", 8, 50, 32, 3),  # strips and item shorter than the halo, 60
        ("1-depth-1", 8, 50, 5, 4),
        ("2-V3", 6, 50, 13, 99),
        ("2-V3", 8, 80, 64, 1),
        ("2-depth-1", 8, 50, 16, 3),
        ("2-depth-3", 8, 50, 16, 2),
        ("2-depth-3", 16, 16, 100, 2),
    ],
)
def test_strips_equal_steps_to_the_bit(monkeypatch, case, channels, rows, length, programs):
    if DEVICE.type == "cpu":
        sum_exactly(monkeypatch)
    module, tensors, blocks = mrf(MRFS[case], channels)
    x = torch.randn(2, channels, rows)
    steps, _ = backend.level(x, backend.pack_blocks(tensors, blocks), blocks, keep=False)
    strips(monkeypatch, length, programs)
    whole, _ = backend.level(x, backend.pack_blocks(tensors, blocks), blocks, keep=False)
    assert_close(whole, module(x.double()).detach())
    assert torch.equal(whole, steps)


# Whole generators, and items of different length


def generator(
    case: Blocky, dtype: torch.dtype = torch.float32
) -> tuple[reference.HiFiGANVocoder, list[Tensor], Network]:
    kind, taps, dilations, *slope = case
    slopes = {"leaky_slope": slope[0]} if slope else {}
    model = reference.HiFiGANVocoder(6, (3, 2), (7, 4), 16, kind, taps, dilations, **slopes)
    model = model.to(dtype)
    tensors = [t.detach() for t in plan_of_generator(model).tensors()]
    return model, tensors, plan_of_generator(model).shape


def generate(
    mel: Tensor, tensors: list[Tensor], shape: Network, lengths: Tensor | None = None
) -> Tensor:
    layers = backend.layers(tensors, shape)
    return generators.forward(backend, mel, layers, shape, lengths, False)[0]


def differentiate(
    grad: Tensor, mel: Tensor, tensors: list[Tensor], shape: Network, lengths: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Audio, and gradients of mel and tensors."""
    audio, kept = generators.forward(
        backend, mel, backend.layers(tensors, shape), shape, lengths, True
    )
    needs = [True] * (1 + len(tensors))
    grads = generators.backward(backend, grad, audio, mel, kept, tensors, shape, lengths, needs)
    return audio, grads


@pytest.mark.parametrize("case", ["1", "2-ragged"])
def test_generator_forward_and_gradients(case):
    model, tensors, shape = generator({**MRFS, **RAGGED}[case])
    mel, grad = torch.randn(2, 6, 5), torch.randn(2, 30)
    (m,) = doubles(mel)
    exact = with_gradients(model.double()(m), grad, m, *plan_of_generator(model).tensors())
    audio, grads = differentiate(grad, mel, tensors, shape)
    all_close([audio, *grads], exact)


UNUSUAL = {
    "rate of one": (6, (1, 3), (3, 5), 16, "1", (3,), ((1,),)),
    "one channel": (6, (4,), (8,), 2, "1", (3,), ((1,),)),
    "one channel, rate of one": (6, (1, 1), (1, 3), 4, "2", (1, 3), ((1,), (2,))),
}


@pytest.mark.parametrize("arguments", UNUSUAL.values(), ids=UNUSUAL)
def test_generators_of_unusual_shapes(arguments):
    model = reference.HiFiGANVocoder(*arguments)
    tensors, shape = (
        [t.detach() for t in plan_of_generator(model).tensors()],
        plan_of_generator(model).shape,
    )
    mel, grad = torch.randn(2, 6, 5), torch.randn(2, 5 * shape.hop)
    (m,) = doubles(mel)
    exact = with_gradients(model.double()(m), grad, m, *plan_of_generator(model).tensors())
    audio, grads = differentiate(grad, mel, tensors, shape)
    all_close([audio, *grads], exact)


def test_weights_and_biases_with_any_strides():
    _, tensors, shape = generator(MRFS["1"])
    mel, grad = torch.randn(1, 6, 5), torch.randn(1, 30)
    strided = [t[..., None].expand(*t.shape, 2).contiguous()[..., 0] for t in tensors]
    expanded = [t if t.ndim > 1 else t[:1].expand(t.shape) for t in tensors]
    for odd in (strided, expanded):
        audio, grads = differentiate(grad, mel, odd, shape)
        plain, expected = differentiate(grad, mel, [t.contiguous() for t in odd], shape)
        assert torch.equal(audio, plain)
        assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


@pytest.fixture(params=["steps", "strips"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "strips":
        strips(monkeypatch, 16, 3)


LENGTHS = [7, 0, 3]


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Mel, gradient of audio, lengths; NaN after the end of an item."""
    mel, grad = torch.randn(3, 6, 7), torch.randn(3, 42)
    for item, frames in enumerate(LENGTHS):
        mel[item, :, frames:] = grad[item, frames * 6 :] = torch.nan
    return mel, grad, torch.tensor(LENGTHS)


@pytest.mark.parametrize("case", ["1", "2-depth-3", "1-ragged"])
def test_items_are_generated_as_if_alone(path, case):
    _, tensors, shape = generator({**MRFS, **RAGGED}[case])
    mel, _, lengths = batch()
    audio = generate(mel, tensors, shape, lengths)
    for item, frames in enumerate(LENGTHS):
        assert not audio[item, frames * 6 :].any()
        if frames:
            alone = generate(mel[item : item + 1, :, :frames], tensors, shape)
            assert torch.equal(audio[item, : frames * 6], alone[0])


@pytest.mark.parametrize("case", ["1-depth-1", "2-ragged"])
def test_gradients_are_those_of_the_items_alone(case):
    _, tensors, shape = generator({**MRFS, **RAGGED}[case])
    mel, grad, lengths = batch()
    _, (d_mel, *grads) = differentiate(grad, mel, tensors, shape, lengths)
    sums = [torch.zeros_like(t, dtype=torch.float64) for t in tensors]
    for item, frames in enumerate(LENGTHS):
        assert not d_mel[item, :, frames:].any()
        if frames:
            part = grad[item : item + 1, : frames * 6], mel[item : item + 1, :, :frames]
            _, (alone, *own) = differentiate(*part, tensors, shape)
            assert_close(d_mel[item : item + 1, :, :frames], alone.double())
            sums = [total + one for total, one in zip(sums, own, strict=True)]
    all_close(grads, sums)


# Precisions


HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


@HALVES
def test_half_precision(path, dtype):
    model, tensors, shape = generator(MRFS["1"], dtype)
    mel = torch.randn(2, 6, 9).to(dtype)
    audio = generate(mel, tensors, shape)
    assert audio.dtype == dtype
    assert_close(audio, model.double()(mel.double()).detach())


@HALVES
@pytest.mark.parametrize("case", ["1-depth-1", "2-depth-1"])
def test_half_precision_gradients(monkeypatch, case, dtype):
    """Without activations: a sum near zero may round to either sign, for the reference as well, and
    its gradient then changes tenfold."""
    model, tensors, _ = generator(MRFS[case], dtype)
    without_activations(monkeypatch, model)
    shape = plan_of_generator(model).shape
    mel, grad = torch.randn(2, 6, 9).to(dtype), torch.randn(2, 54).to(dtype)
    (m,) = doubles(mel)
    exact = with_gradients(model.double()(m), grad, m, *plan_of_generator(model).tensors())
    audio, grads = differentiate(grad, mel, tensors, shape)
    assert audio.dtype == grads[0].dtype == dtype
    all_close([audio, *(g.to(dtype) for g in grads)], exact)


def without_activations(monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
    for module in (backend, hifigan):
        monkeypatch.setattr(module, "LAST_LEAKY_SLOPE", 1.0)
    for inner in (model, *model.resblocks):
        inner._slope = "1.0"


def integers(*tensors: Tensor, most: int) -> None:
    for tensor in tensors:
        tensor.copy_(torch.randint(-most, most + 1, tensor.shape))


@pytest.mark.parametrize("case", ["1", "2-depth-3"])
def test_small_integers_are_exact(monkeypatch, case):
    """Whatever the order of sums: every partial sum has a float32, and every operand two tf32."""
    module, tensors, blocks = mrf((*MRFS[case], 0.5), 6)
    x, grad = torch.empty(2, 2, 6, 40)
    integers(x, grad, most=2)
    integers(*tensors, most=1)
    set_weights(module, tensors)
    (d,) = doubles(x)
    exact = with_gradients(module(d), grad, d, *weights_of(module))
    out, kept = backend.level(x, backend.pack_blocks(tensors, blocks), blocks, keep=True)
    d_x, grads = backend.level_grad(grad, x, kept, tensors, blocks, [True] * len(tensors))
    strips(monkeypatch, 16, 2)
    whole, _ = backend.level(x, backend.pack_blocks(tensors, blocks), blocks, keep=False)
    for found, value in zip([out, d_x, *grads, whole], [*exact, exact[0]], strict=True):
        assert torch.equal(found.double(), value)


def multiply_in(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """Float32 operands, everywhere."""
    for module in (conv, weight_grad, mrf_step, mrf_strip):
        monkeypatch.setattr(module, "dot_precision", lambda _: precision)


@pytest.mark.parametrize(("precision", "least"), [("tf32", 57), ("tf32x3", 110)])
def test_noise_of_rounded_products(monkeypatch, precision, least):
    """V1's residual blocks with weights that keep the variance of noise; torch's float32 reaches
    130 dB."""
    module, tensors, blocks = mrf(MRFS["1-V1"], 32)
    for weight in tensors[::2]:
        weight.normal_(std=(2 / 1.01 / weight[0].numel()) ** 0.5)  # leaky_relu halves it
    set_weights(module, tensors)
    x = torch.randn(1, 32, 256)
    monkeypatch.setattr(conv_configs, "INTERPRETER_TILE", ConvConfig(256, 64, 64, 4, 1))
    multiply_in(monkeypatch, precision)
    out = backend.level(x, backend.pack_blocks(tensors, blocks), blocks, keep=False)[0]
    assert snr_db(out, module(x.double()).detach()) >= least


def emulated(model: reference.HiFiGANVocoder, rounding: Callable[[Tensor], Tensor]) -> nn.Module:
    """The model with the operands of its convolutions rounded, but the last's, which has no product
    for tensor cores."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)) and name != "conv_post":
            module.weight.data = rounding(module.weight.data)
            module.register_forward_pre_hook(lambda _, inputs: (rounding(inputs[0]),))
    return model


def cut_off(values: Tensor) -> Tensor:
    return torch.from_numpy(truncated(values.cpu().numpy(), "tf32")).to(values.device)


def test_tf32_operands_are_rounded_to_nearest(monkeypatch):
    """Not cut off, as tensor cores do, which costs 13 dB."""
    monkeypatch.setattr(conv_configs, "INTERPRETER_TILE", ConvConfig(512, 128, 256, 4, 1))
    with torch.no_grad():
        model, mel = problem("default"), torch.randn(1, 128, 2)
        exact = copy.deepcopy(model).double()(mel.double())
        nearest, cut = (snr_db(emulated(model, r)(mel), exact) for r in (nearest_tf32, cut_off))
        multiply_in(monkeypatch, "tf32")
        found = generate(mel, plan_of_generator(model).tensors(), plan_of_generator(model).shape)
    assert abs(snr_db(found, exact) - nearest) < 1 and nearest > cut + 8


def test_tf32_gradients_of_weights_are_rounded_to_nearest(monkeypatch):
    multiply_in(monkeypatch, "tf32")
    y, x = torch.randn(1, 300, 16), torch.randn(1, 300, 16)
    found, sums = weight_grad.conv_weight_grad(y, x, (1,), (1,), (0,))
    exact = nearest_tf32(y)[0].double().T @ nearest_tf32(x)[0].double()
    assert_close(found.view(16, 16), exact)
    assert_close(sums[0], y[0].double().sum(0))  # the bias is no product


@pytest.mark.skipif(DEVICE.type == "cuda", reason="watches the interpreter")
@pytest.mark.parametrize("precision", ["tf32x3", "tf32"])
def test_only_tf32_products_are_rounded(monkeypatch, path, precision):
    """Three products of what is cut off and what is left over make up float32."""
    multiply_in(monkeypatch, precision)
    _, tensors, shape = generator(MRFS["1-depth-1"])
    mel, grad = torch.randn(1, 6, 2), torch.randn(1, 12)
    for work in (
        lambda: generate(mel, tensors, shape),
        lambda: differentiate(grad, mel, tensors, shape),
        lambda: weight_grad.conv_weight_grad(mel, mel, (1,), (1,), (0,)),
    ):
        seen = []
        for module in (taps, weight_grad):
            monkeypatch.setattr(module, "round_to_tf32", lambda x, seen=seen: seen.append(x) or x)
        work()
        assert bool(seen) == (precision == "tf32")
