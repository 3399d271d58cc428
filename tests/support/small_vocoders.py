"""Small vocoders of every kind, which tests share."""

import pytest
import torch
from torch import Tensor, nn

import muomni_fast
from muomni_fast import reference
from muomni_fast.kernels.vocoder import configs as conv_configs
from muomni_fast.kernels.vocoder.configs import StripConfig
from muomni_fast.vocoder import triton_mrf
from muomni_fast.vocoder.plan import plan_of_generator

TYPE_1 = dict(
    n_mels=12,
    upsample_rates=(4, 2),
    upsample_kernel_sizes=(8, 4),
    upsample_initial_channel=16,
)
TYPE_2 = dict(
    n_mels=5,
    upsample_rates=(3, 2),
    upsample_kernel_sizes=(5, 2),
    upsample_initial_channel=8,
    resblock="2",
    resblock_kernel_sizes=(3, 1, 5),
    resblock_dilation_sizes=((1, 2, 3), (1,), (2,)),
)
TINY = dict(
    n_mels=3,
    upsample_rates=(2,),
    upsample_kernel_sizes=(4,),
    upsample_initial_channel=4,
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 2), (3,)),
)
TINY_2 = TINY | dict(resblock="2", resblock_dilation_sizes=((2,), (1,)))
CONFIGS = {"type 1": TYPE_1, "type 2": TYPE_2, "tiny": TINY, "keeps nothing inside": TINY_2}
BLOCKS = {  # name -> module, arguments
    "MRF": ("MRF", (6, (3, 5), ((1, 2), (3, 1)))),
    "ragged MRF": ("MRF", (6, (3, 5, 1), ((1, 2), (3,), (1, 1, 1)))),
    "MRF type 2": ("MRF", (6, (3, 5), ((1, 2), (3, 1)), "2")),
    "ResBlock": ("ResBlock", (6, 5, (1, 3))),
    "ResBlock type 2": ("ResBlock", (6, 5, (3,), "2")),
}
EXACT = dict(rtol=0, atol=1e-6)

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
every_block = pytest.mark.parametrize(("name", "shape"), BLOCKS.values(), ids=BLOCKS)
small_configs = pytest.mark.parametrize("config", [TINY, TINY_2], ids=["ragged", "type 2"])
both_modes = pytest.mark.parametrize("prepared", [False, True], ids=["as it is", "prepared"])


def pair(config: dict, dtype: torch.dtype = torch.float32, **options: bool):
    """A reference generator and a fast one, of the same weights, none of them near zero."""
    plain = reference.HiFiGANVocoder(**config)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.15)
    models = [lib.HiFiGANVocoder(**config, **options) for lib in (reference, muomni_fast)]
    for model in models:
        model.load_state_dict(plain.state_dict())
    return [model.to(dtype) for model in models]


def fast_of(config: dict = TYPE_1, **options: bool) -> muomni_fast.HiFiGANVocoder:
    return pair(config, **options)[1]


def arguments(model: reference.HiFiGANVocoder, mel: Tensor, lengths: Tensor | None) -> tuple:
    """What `generator_train` takes."""
    shape = plan_of_generator(model).shape
    tensors = [t.detach().requires_grad_() for t in plan_of_generator(model).tensors()]
    return mel, tensors, lengths, shape.spec


def weighted(y: Tensor) -> Tensor:
    """Every sample counts differently."""
    return y * (2 + torch.arange(y.numel(), dtype=y.dtype).view_as(y).sin())


def gradients(model: nn.Module, x: Tensor, *lengths: list[int] | None) -> dict[str, Tensor]:
    """Of a weighted sum of the result, with respect to the input and every parameter."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x, *lengths)
    weighted(y).sum().backward()
    return {"input": x.grad, **{name: p.grad.clone() for name, p in model.named_parameters()}}


def assert_same_gradients(slow: dict[str, Tensor], fast: dict[str, Tensor], error: float) -> None:
    assert slow.keys() == fast.keys()
    for name, expected in slow.items():
        assert expected.norm() > 0, name
        assert (fast[name] - expected).norm() <= error * expected.norm(), name


def strips(monkeypatch: pytest.MonkeyPatch, length: int, programs: int) -> None:
    """Send stages that keep nothing down the strip path."""
    tile = lambda x: conv_configs.conv_config(x.shape[2], x.shape[2], x, x.numel() // x.shape[2])
    config = lambda x, *_: StripConfig(tile(x), programs, length)
    monkeypatch.setattr(triton_mrf, "strip_config", config)
