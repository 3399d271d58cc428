"""Generators to check and to time, and how near audio is to what it should be."""

import copy
import unittest.mock
from typing import Any

import torch
from torch import Tensor, nn

from muomni_fast import reference
from muomni_fast.kernels import launch
from muomni_fast.kernels.vocoder import configs as conv_configs
from muomni_fast.kernels.vocoder.configs import StripConfig
from muomni_fast.reference.vocoder.blocks import LEAKY_SLOPE
from muomni_fast.reference.vocoder.hifigan import PRESETS

GENERATORS: dict[str, dict[str, Any]] = {"default": {}, **PRESETS}
# Half of a leaky_relu's inputs are multiplied by its slope.
ACTIVE_POWER = (1 + LEAKY_SLOPE**2) / 2
WINDOW = 64  # samples

TINY = {"upsample_rates": (4, 2), "upsample_kernel_sizes": (8, 4)}


def keep_variance(model: nn.Module) -> nn.Module:
    """Random weights under which signals keep their size from layer to layer; HiFi-GAN's own
    initial ones give an almost constant signal, which flatters any comparison."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
            terms = module.weight[0].numel()  # of each output
            if isinstance(module, nn.ConvTranspose1d):
                terms = module.weight[:, 0].numel() / module.stride[0]
            nn.init.normal_(module.weight, std=(terms * ACTIVE_POWER) ** -0.5)
            nn.init.normal_(module.bias, std=0.1)
    if isinstance(model, reference.HiFiGANVocoder):
        with torch.no_grad():
            model.conv_post.weight *= 0.1  # tanh stays out of its flat ends
    return model


def generator(name: str, **changes: Any) -> reference.HiFiGANVocoder:
    """The reference's generator of a preset, with weights that keep the variance."""
    return keep_variance(reference.HiFiGANVocoder(**GENERATORS[name] | changes)).eval()


def in_float64(model: nn.Module) -> nn.Module:
    """A copy that computes what is right."""
    return copy.deepcopy(model).cpu().double()


def snr_db(found: Tensor, right: Tensor) -> float:
    """Signal to noise ratio, the signal's mean removed; `right` is float64."""
    right = right.double()
    noise = (found.double() - right).square().sum()
    return float(10 * torch.log10((right - right.mean()).square().sum() / noise))


def worst_window_db(found: Tensor, right: Tensor) -> float:
    """The lowest `snr_db` of all windows of WINDOW samples along the last dimension."""
    size = min(WINDOW, right.shape[-1])
    cut = [t.double().unfold(-1, size, size) for t in (found, right)]
    noise = (cut[0] - cut[1]).square().sum(-1)
    signal = (cut[1] - cut[1].mean(-1, keepdim=True)).square().sum(-1)
    return float(10 * torch.log10(signal / noise).min())


def always_grouped(*_: Any) -> None:
    """Instead of `strip_config`: every level step by step."""


def always_strip(x: Tensor, taps: Any, dilations: Any, paired: bool) -> StripConfig:
    """Instead of `strip_config`: every level in one launch."""
    channels = x.shape[2]
    usual = conv_configs.conv_config(channels, channels, x, x.numel() // channels)
    tile, _ = conv_configs.strip_tile(x) or (usual, 1)
    programs = launch.multiprocessors(x.device)
    return conv_configs.strip_of(x, taps, dilations, paired, tile, programs, 512)


PATHS: dict[str, Any] = {"grouped": always_grouped, "strip": always_strip}


def path(name: str) -> Any:
    """A context in which every level takes this path."""
    return unittest.mock.patch("muomni_fast.vocoder.triton_mrf.strip_config", PATHS[name])
