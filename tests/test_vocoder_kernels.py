"""The vocoder's Triton kernels: on a GPU, or interpreted with products rounded as tensor cores
round them."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import DEVICE
from interpreter import round_like_tensor_cores
from oracle import snr_db
from torch import Tensor
from torch.nn import functional as F

from muomni_fast import fused, network, reference
from muomni_fast import triton_vocoder as run
from muomni_fast.kernels import conv_configs, mrf_grouped
from muomni_fast.kernels.conv_configs import ConvConfig, StripConfig
from muomni_fast.kernels.conv_post import conv_post
from muomni_fast.network import Blocks, Network
from muomni_fast.reference import hifigan

pytestmark = [pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")]
if DEVICE.type == "cuda":
    pytestmark.append(pytest.mark.gpu)

# Tiles whose edges a few rows reach: parts of a tap at once, or several taps.
PARTS, TAPS = ConvConfig(16, 16, 16, 4, 1), ConvConfig(16, 16, 64, 4, 1)
ROWS = [1, 2, 15, 16, 17]  # fewer than a kernel reaches, and around a tile
WORST = {
    # dtype: error of an output or gradient, of the largest magnitude in it
    torch.float32: 1e-5,
    torch.float16: 6e-3,
    torch.bfloat16: 5e-2,  # the interpreter truncates
}
MRFS = {
    "1": ("1", (3, 5), ((1, 2), (1, 2))),
    "1-V1": ("1", (3, 7, 11), ((1, 3, 5),) * 3),
    "1-depth-1": ("1", (1, 3), ((1,), (4,))),
    "2-V3": ("2", (3, 5, 7), ((1, 2), (2, 6), (3, 12))),
    "2-depth-1": ("2", (3,), ((2,),)),
    "2-depth-3": ("2", (5, 3), ((1, 2, 3), (1, 3, 1))),
}
RAGGED = {
    "1-ragged": ("1", (3, 5), ((1, 2), (1,))),
    "2-ragged": ("2", (3, 1, 5), ((1,), (2,), (1, 2, 3))),
}
Blocky = tuple[str, tuple[int, ...], tuple[tuple[int, ...], ...]]


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(conv_configs, "INTERPRETED", TAPS)
    if DEVICE.type == "cpu":
        round_like_tensor_cores(monkeypatch)
    with torch.device(DEVICE):
        yield


def assert_close(found: Tensor, exact: Tensor) -> None:
    assert found.shape == exact.shape and exact.numel()
    error = (found.double() - exact).abs().max()
    assert error <= WORST[found.dtype] * exact.abs().max(), f"off by {error:.2g}"


def all_close(found: list[Tensor], exact: list[Tensor]) -> None:
    for a, b in zip(found, exact, strict=True):
        assert_close(a, b)


def doubles(*tensors: Tensor) -> list[Tensor]:
    """Float64 copies that collect gradients."""
    return [t.double().requires_grad_() for t in tensors]


def with_gradients(out: Tensor, grad: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.double())]


def turned(x: Tensor) -> Tensor:
    """(B, C, T) to or from (B, T, C)."""
    return x.transpose(1, 2).contiguous()


def strips(monkeypatch: pytest.MonkeyPatch, length: int, programs: int) -> None:
    """Send stages that keep nothing down the strip path."""
    tile = lambda x: conv_configs.conv_config(x.shape[2], x.shape[2], x)
    config = lambda x, *_: StripConfig(tile(x), programs, length)
    monkeypatch.setattr(run, "strip_config", config)


# Single convolutions


@pytest.fixture(params=[PARTS, TAPS], ids=["parts", "taps"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_configs, "INTERPRETED", request.param)


@pytest.mark.parametrize(
    ("n_mels", "channels", "rows"), [*((8, 16, rows) for rows in ROWS), (80, 24, 17), (6, 48, 17)]
)
def test_pre(tile, n_mels, channels, rows):
    mel, grad = torch.randn(2, n_mels, rows), torch.randn(2, channels, rows)
    layer = torch.randn(channels, n_mels, 7), torch.randn(channels)
    m, w, b = doubles(mel, *layer)
    exact = with_gradients(F.conv1d(m, w, b, padding=3), grad, m, w, b)
    packed = layer[0].transpose(1, 2).contiguous(), layer[1]
    out = run.pre(mel, packed, None)
    d_mel, grads = run.pre_grad(turned(grad), mel, layer, None, True, [True, True])
    all_close([turned(out), d_mel, *grads], exact)


def up_of(weight: Tensor, bias: Tensor, rate: int) -> tuple[Tensor, Tensor]:
    """A transposed convolution's weights, packed."""
    other = [weight[:1, :1, :1], bias[:1]]  # layers that are not looked at
    one = Network((rate,), (weight.shape[2],), Blocks("2", (1,), ((1,),)))
    return run.layers([*other, weight, bias, *other, *other], one).ups[0]


@pytest.mark.parametrize("rows", [1, 16, 17])
@pytest.mark.parametrize(
    ("rate", "kernel", "channels"),
    [(8, 16, 16), (2, 4, 6), (4, 8, 24), (4, 4, 8), (3, 7, 24), (2, 8, 48), (5, 11, 8)],
)
def test_up(tile, rate, kernel, channels, rows):
    padding = (kernel - rate) // 2
    x, grad = torch.randn(2, channels, rows), torch.randn(2, channels // 2, rows * rate)
    layer = torch.randn(channels, channels // 2, kernel), torch.randn(channels // 2)
    d, w, b = doubles(x, *layer)
    up = F.conv_transpose1d(F.leaky_relu(d, 0.1), w, b, rate, padding)
    exact = with_gradients(up, grad, d, w, b)
    out = run.up(turned(x), up_of(*layer, rate), rate, kernel, None, 1)
    d_x, grads = run.up_grad(turned(grad), turned(x), layer, rate, None, 1, [True, True])
    all_close([turned(out), turned(d_x), *grads], exact)


@pytest.mark.parametrize(
    ("channels", "rows"),
    [(6, 1), (6, 2), (8, 63), (8, 64), (48, 65), (8, 127), (24, 128), (6, 129)],
)
def test_post(channels, rows):
    x, grad = torch.randn(2, channels, rows), torch.randn(2, 1, rows)
    layer = torch.randn(1, channels, 7) / channels, torch.randn(1)
    d, w, b = doubles(x, *layer)
    post = F.conv1d(F.leaky_relu(d, 0.01), w, b, padding=3).tanh()
    exact = with_gradients(post, grad, d, w, b)
    packed = layer[0][0].t().contiguous(), layer[1]
    out = run.post(turned(x), packed, None, 1)
    d_x, grads = run.post_grad(grad[:, 0], out, turned(x), layer, None, 1, [True, True])
    all_close([out[:, None], turned(d_x), *grads], exact)


def test_tanh_is_accurate_everywhere():
    """`conv_post` of one channel and one tap of weight 1 is tanh alone."""
    sizes = torch.cat([torch.logspace(-30, 1.3, 3000), torch.linspace(0.3, 20, 3000)])
    x = torch.cat([sizes, -sizes])
    one, nothing = torch.ones(1, 1), torch.zeros(1)
    tanh = lambda x: conv_post(x[None, :, None], one, nothing, None, 1, 1.0)[0]
    exact = x.double().tanh()
    ulp = torch.nextafter(exact.float().abs(), torch.tensor(2.0)) - exact.float().abs()
    assert ((tanh(x) - exact).abs() <= 4 * ulp).all()
    special = torch.tensor([0.0, torch.inf, -torch.inf, 1e38, -1e38])
    assert tanh(special).tolist() == [0, 1, -1, 1, -1]
    assert tanh(torch.tensor([torch.nan])).isnan()


# Residual blocks


def mrf(case: Blocky, channels: int) -> tuple[reference.MRF, list[Tensor], Blocks]:
    """The module in float64, its weights and biases in float32, and its shape."""
    kind, taps, dilations = case
    module = reference.MRF(channels, taps, dilations, kind)
    tensors = [t.detach() for t in weights_of(module)]
    return module.double(), tensors, Blocks(*case)


def weights_of(module: reference.MRF) -> list[Tensor]:
    return fused.tensors_of_blocks(list(module.resblocks))


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
    out, kept = run.stage(x, tensors, blocks, keep=True)
    needs = [True] * len(tensors)
    d_x, grads = run.stage_grad(grad, x, kept, tensors, blocks, needs)
    all_close([out, d_x, *grads], exact)


@pytest.mark.parametrize("channels", [6, 24, 48])
def test_mrf_of_any_width(monkeypatch, channels):
    monkeypatch.setattr(conv_configs, "INTERPRETED", ConvConfig(32, 32, 32, 4, 1))
    module, tensors, blocks = mrf(MRFS["1"], channels)
    x = torch.randn(2, channels, 17)
    assert_close(run.stage(x, tensors, blocks, keep=False)[0], module(x.double()).detach())


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
    steps, _ = run.stage(x, tensors, blocks, keep=False)
    strips(monkeypatch, length, programs)
    whole, _ = run.stage(x, tensors, blocks, keep=False)
    assert_close(whole, module(x.double()).detach())
    assert torch.equal(whole, steps)


# Whole generators, and items of different length


def generator(
    case: Blocky, dtype: torch.dtype = torch.float32
) -> tuple[reference.HiFiGANVocoder, list[Tensor], Network]:
    kind, taps, dilations = case
    model = reference.HiFiGANVocoder(6, (3, 2), (7, 4), 16, kind, taps, dilations).to(dtype)
    tensors = [t.detach() for t in fused.tensors_of(model)]
    return model, tensors, fused.network_of(model)


def generate(
    mel: Tensor, tensors: list[Tensor], shape: Network, lengths: Tensor | None = None
) -> Tensor:
    return network.forward(run, mel, run.layers(tensors, shape), shape, lengths, False)[0]


def differentiate(
    grad: Tensor, mel: Tensor, tensors: list[Tensor], shape: Network, lengths: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Audio, and gradients of mel and tensors."""
    audio, kept = network.forward(run, mel, run.layers(tensors, shape), shape, lengths, True)
    needs = [True] * (1 + len(tensors))
    grads = network.backward(run, grad, audio, mel, kept, tensors, shape, lengths, needs)
    return audio, grads


@pytest.mark.parametrize("case", ["1", "2-ragged"])
def test_generator_forward_and_gradients(case):
    model, tensors, shape = generator({**MRFS, **RAGGED}[case])
    mel, grad = torch.randn(2, 6, 5), torch.randn(2, 30)
    (m,) = doubles(mel)
    exact = with_gradients(model.double()(m), grad, m, *fused.tensors_of(model))
    audio, grads = differentiate(grad, mel, tensors, shape)
    all_close([audio, *grads], exact)


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
    slopes(monkeypatch, 1.0)
    model, tensors, shape = generator(MRFS[case], dtype)
    mel, grad = torch.randn(2, 6, 9).to(dtype), torch.randn(2, 54).to(dtype)
    (m,) = doubles(mel)
    exact = with_gradients(model.double()(m), grad, m, *fused.tensors_of(model))
    audio, grads = differentiate(grad, mel, tensors, shape)
    assert audio.dtype == grads[0].dtype == dtype
    all_close([audio, *(g.to(dtype) for g in grads)], exact)


def slopes(monkeypatch: pytest.MonkeyPatch, slope: float) -> None:
    for module in (run, hifigan):
        monkeypatch.setattr(module, "LEAKY_SLOPE", slope)
        monkeypatch.setattr(module, "LAST_LEAKY_SLOPE", slope)


def integers(*tensors: Tensor, most: int) -> None:
    for tensor in tensors:
        tensor.copy_(torch.randint(-most, most + 1, tensor.shape))


@pytest.mark.parametrize("case", ["1", "2-depth-3"])
def test_small_integers_are_exact(monkeypatch, case):
    """Whatever the order of sums: every partial sum has a float32, and every operand two tf32."""
    slopes(monkeypatch, 0.5)
    module, tensors, blocks = mrf(MRFS[case], 6)
    x, grad = torch.empty(2, 2, 6, 40)
    integers(x, grad, most=2)
    integers(*tensors, most=1)
    set_weights(module, tensors)
    (d,) = doubles(x)
    exact = with_gradients(module(d), grad, d, *weights_of(module))
    out, kept = run.stage(x, tensors, blocks, keep=True)
    d_x, grads = run.stage_grad(grad, x, kept, tensors, blocks, [True] * len(tensors))
    strips(monkeypatch, 16, 2)
    whole, _ = run.stage(x, tensors, blocks, keep=False)
    for found, value in zip([out, d_x, *grads, whole], [*exact, exact[0]], strict=True):
        assert torch.equal(found.double(), value)


@pytest.mark.parametrize(("precision", "least"), [("tf32", 45), ("tf32x3", 110)])
def test_noise_of_rounded_products(monkeypatch, precision, least):
    """V1's residual blocks with weights that keep the variance of noise; torch's float32 reaches
    130 dB."""
    module, tensors, blocks = mrf(MRFS["1-V1"], 32)
    for weight in tensors[::2]:
        weight.normal_(std=(2 / 1.01 / weight[0].numel()) ** 0.5)  # leaky_relu halves it
    set_weights(module, tensors)
    x = torch.randn(1, 32, 256)
    monkeypatch.setattr(conv_configs, "INTERPRETED", ConvConfig(256, 64, 64, 4, 1))
    monkeypatch.setattr(mrf_grouped, "dot_precision", lambda _: precision)
    out = run.stage(x, tensors, blocks, keep=False)[0]
    assert snr_db(out, module(x.double()).detach()) >= least
