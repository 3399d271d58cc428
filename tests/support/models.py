"""A stand-in for HiFi-GAN's own generator, of the structure that is known of it; this file's name
is part of that structure."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _same(channels: int, kernel_size: int, dilation: int = 1) -> nn.Conv1d:
    padding = dilation * (kernel_size - 1) // 2
    return nn.Conv1d(channels, channels, kernel_size, 1, padding, dilation)


class PairedBlock(nn.Module):
    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_same(channels, kernel_size, d) for d in dilations)
        self.convs2 = nn.ModuleList(_same(channels, kernel_size) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.convs1, self.convs2, strict=True):
            x = x + second(F.leaky_relu(first(F.leaky_relu(x, 0.1)), 0.1))
        return x


class SingleBlock(nn.Module):
    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_same(channels, kernel_size, d) for d in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + conv(F.leaky_relu(x, 0.1))
        return x


class Generator(nn.Module):
    """As HiFi-GAN's own code; with `speakers` as VITS's."""

    def __init__(self, block: type[nn.Module] = PairedBlock, speakers: int = 0) -> None:
        super().__init__()
        self.num_kernels, channels = 2, 16
        self.conv_pre = nn.Conv1d(6, channels, 7, 1, 3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate in (4, 2):
            up = nn.ConvTranspose1d(channels, channels // 2, 2 * rate, rate, rate // 2)
            channels //= 2
            self.ups.append(up)
            self.resblocks.extend(block(channels, k, (2,)) for k in (3, 5))
        self.conv_post = nn.Conv1d(channels, 1, 7, 1, 3, bias=not speakers)
        if speakers:
            self.cond = nn.Conv1d(speakers, 16, 1)

    def forward(self, x: Tensor, g: Tensor | None = None) -> Tensor:
        x = self.conv_pre(x)
        if g is not None:
            x = x + self.cond(g)
        for level, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            blocks = self.resblocks[level * self.num_kernels : (level + 1) * self.num_kernels]
            x = sum(block(x) for block in blocks) / self.num_kernels
        return torch.tanh(self.conv_post(F.leaky_relu(x)))


def normed(model: nn.Module) -> Any:
    """As HiFi-GAN's own code trains it: a hook computes each weight before its convolution runs."""
    for module in [*model.modules()]:
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # newer torch has another way
                nn.utils.weight_norm(module)
    return model
