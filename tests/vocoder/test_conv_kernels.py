"""The vocoder's single convolutions as Triton kernels: on a GPU, or interpreted with products
rounded as tensor cores round them."""

import pytest
import torch
import triton
import triton.language as tl
from support.environment import ON_KERNELS
from support.interpreter import nearest_tf32
from support.kernel_checks import all_close, assert_close, doubles, turned, with_gradients
from torch import Tensor
from torch.nn import functional as F

from muomni_fast.kernels.tf32 import round_to_tf32
from muomni_fast.kernels.vocoder import configs as conv_configs
from muomni_fast.kernels.vocoder.configs import ConvConfig
from muomni_fast.kernels.vocoder.conv_post import conv_post
from muomni_fast.vocoder import triton_backend as backend
from muomni_fast.vocoder.shapes import Blocks, Network, Up
from muomni_fast.vocoder.triton_layouts import for_input, taps_inside

pytestmark = ON_KERNELS

ROWS = [1, 2, 15, 16, 17]  # fewer than a kernel reaches, and around a tile


@pytest.fixture(params=[16, 64], ids=["parts", "taps"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles whose edges a few rows reach: parts of a tap at once, or several taps."""
    config = ConvConfig(16, 16, request.param, 4, 1)
    monkeypatch.setattr(conv_configs, "INTERPRETER_TILE", config)


@pytest.mark.parametrize(
    ("n_mels", "channels", "rows"), [*((8, 16, rows) for rows in ROWS), (80, 24, 17), (6, 48, 17)]
)
def test_pre(tile, n_mels, channels, rows):
    check_pre(n_mels, channels, rows, None)


@pytest.mark.parametrize("each", [1, 17])
def test_pre_with_an_addend(tile, each):
    check_pre(8, 24, 17, torch.randn(2, 24, each))


def check_pre(n_mels: int, channels: int, rows: int, addend: Tensor | None) -> None:
    mel, grad = torch.randn(2, n_mels, rows), torch.randn(2, channels, rows)
    layer = torch.randn(channels, n_mels, 7), torch.randn(channels)
    m, w, b = doubles(mel, *layer)
    exact = F.conv1d(m, w, b, padding=3) + (0 if addend is None else addend.double())
    exact = with_gradients(exact, grad, m, w, b)
    packed = layer[0].transpose(1, 2).contiguous(), layer[1]
    out = backend.pre(mel, packed, addend=addend)
    flipped = [for_input(layer[0]).contiguous()]
    d_mel, grads = backend.pre_grad(turned(grad), mel, flipped, True, [True, True])
    all_close([turned(out), d_mel, *grads], exact)


def up_of(weight: Tensor, bias: Tensor, rate: int) -> tuple[Tensor, Tensor]:
    """A transposed convolution's weights, packed."""
    other = [weight[:1, :1, :1], bias[:1]]  # layers that are not looked at
    one = Network((rate,), (weight.shape[2],), Blocks("2", (1,), ((1,),)))
    return backend.layers([*other, weight, bias, *other, *other], one).ups[0]


@pytest.mark.parametrize("rows", [1, 16, 17])
@pytest.mark.parametrize(
    ("rate", "kernel", "channels"),
    [(8, 16, 16), (2, 4, 6), (4, 8, 24), (4, 4, 8), (3, 7, 24), (2, 8, 48), (5, 11, 8)]
    + [(5, 10, 8), (3, 8, 24), (4, 5, 6), (2, 3, 48)],  # kernel - rate odd
)
def test_up(tile, rate, kernel, channels, rows):
    shape = Up(rate, kernel, (0.1, 0.0, 0.3)[rows % 3])
    paddings = (kernel - rate + 1) // 2, (kernel - rate) % 2
    x, grad = torch.randn(2, channels, rows), torch.randn(2, channels // 2, rows * rate)
    layer = torch.randn(channels, channels // 2, kernel), torch.randn(channels // 2)
    d, w, b = doubles(x, *layer)
    up = F.conv_transpose1d(F.leaky_relu(d, shape.slope), w, b, rate, *paddings)
    exact = with_gradients(up, grad, d, w, b)
    out = backend.up(turned(x), up_of(*layer, rate), shape)
    inward = [taps_inside(layer[0]).contiguous()]
    d_x, grads = backend.up_grad(turned(grad), turned(x), inward, shape, [True, True])
    all_close([turned(out), turned(d_x), *grads], exact)


@pytest.mark.parametrize("each", [False, True], ids=["all rows", "each row"])
@pytest.mark.parametrize(("rate", "kernel", "channels"), [(8, 16, 16), (5, 10, 8), (3, 8, 24)])
def test_up_with_an_addend(tile, rate, kernel, channels, each):
    """Added as the result is stored: the same as added afterwards, to rounding."""
    x, shape = torch.randn(2, channels, 17), Up(rate, kernel)
    layer = torch.randn(channels, channels // 2, kernel), torch.randn(channels // 2)
    addend = torch.randn(2, channels // 2, 17 * rate if each else 1)
    packed = up_of(*layer, rate)
    plain = backend.up(turned(x), packed, shape).double()
    out = backend.up(turned(x), packed, shape, addend=addend)
    assert_close(out, plain + addend.double().transpose(1, 2))


@pytest.mark.parametrize(
    ("channels", "rows"),
    [(6, 1), (6, 2), (8, 63), (8, 64), (48, 65), (8, 127), (24, 128), (6, 129)],
)
def test_post(channels, rows):
    check_post(channels, rows, "tanh", bias=True)


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("final", ["tanh", None], ids=str)
def test_post_without_bias_or_tanh(final, bias):
    check_post(6, 65, final, bias)


def check_post(channels: int, rows: int, final: str | None, bias: bool) -> None:
    x, grad = torch.randn(2, channels, rows), torch.randn(2, 1, rows)
    layer = [torch.randn(1, channels, 7) / channels, torch.randn(1)][: 1 + bias]
    d, *wb = doubles(x, *layer)
    post = F.conv1d(F.leaky_relu(d, 0.01), *wb, padding=3)
    post = post.tanh() if final == "tanh" else post
    exact = with_gradients(post, grad, d, *wb)
    packed = [layer[0][0].t().contiguous(), *layer[1:]]
    out = backend.post(turned(x), packed, final)
    d_x, grads = backend.post_grad(grad[:, 0], out, turned(x), packed, final, [True] * len(layer))
    all_close([out[:, None], turned(d_x), *grads], exact)


def test_clamp_keeps_what_is_not_a_number():
    """`conv_post` of one channel and one tap of weight 1."""
    x = torch.tensor([-torch.inf, -1.5, -1, -0.25, 0, 1, 1.5, torch.inf, torch.nan])
    found = conv_post(x[None, :, None], torch.ones(1, 1), None, None, 1, 1.0, "clamp")[0]
    torch.testing.assert_close(found, x.clamp(-1, 1), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shares", [1, 3])
def test_gradients_of_rows_shared_out_unevenly(monkeypatch, shares):
    """Among fewer programs than there are tiles of rows."""
    monkeypatch.setattr(conv_configs, "INTERPRETER_TILE", ConvConfig(16, 16, 64, 4, 1))
    monkeypatch.setattr("muomni_fast.kernels.vocoder.weight_grad.GRAD_PROGRAMS", shares)
    monkeypatch.setattr("muomni_fast.kernels.vocoder.conv_post.GRAD_SHARES", shares)
    test_pre(None, 8, 16, rows=50)
    test_post(8, rows=300)


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


@triton.jit
def _round_kernel(x_ptr, out_ptr, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(out_ptr + o, round_to_tf32(tl.load(x_ptr + o)))


def test_rounding_to_tf32():
    x = torch.cat([torch.randn(2000), torch.logspace(-37, 38, 2000)])
    tie = 1 + 2.0**-11
    under, over = torch.nextafter(torch.tensor([tie, tie]), torch.tensor([0.0, 2.0]))
    x = torch.cat([x, torch.stack([under, over]), torch.tensor([tie, 0.0, 1 + 3 * 2.0**-11])])
    x = torch.cat([x, -x])
    special = torch.tensor([torch.inf, -torch.inf, torch.finfo(torch.float32).max, torch.nan, 0, 0])
    # What PTX makes of NaN, and the most that is one: an addition would carry both to zero.
    special.view(torch.int32)[4:] = torch.tensor([0x7FFFFFFF, -1])
    every = torch.zeros(1 << 14)
    every[: len(x)], every[-6:] = x, special
    out = torch.full_like(every, torch.nan)
    _round_kernel[(1,)](every, out, len(every))
    assert torch.equal(out[: len(x)], nearest_tf32(x))
    assert out[-6:-3].tolist() == [torch.inf, -torch.inf, torch.inf] and out[-3:].isnan().all()
