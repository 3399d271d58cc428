"""Stand-ins for models that no package has, of the structure that is known of them: HiFi-GAN's own
generator, and micro-Omni's quantizer and vocoder. This file's name is part of that structure."""

from typing import Any

import torch
from family_models import Family
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


class HiFiGANVocoder(Generator):
    """As micro-Omni's."""

    def forward(self, mel: Tensor, target_length: int | None = None) -> Tensor:
        mel = mel[None] if mel.dim() == 2 else mel
        mel = mel if mel.shape[1] == 6 else mel.transpose(1, 2)
        mel = (mel - mel.min()) / (mel.max() - mel.min() + 1e-8)
        audio = super().forward(mel).squeeze(1)
        if target_length is not None:
            audio = F.pad(audio[:, :target_length], (0, max(0, target_length - audio.shape[1])))
        return audio


class RVQ(nn.Module):
    """As micro-Omni's: `decode` is right for (B, Q) only."""

    def __init__(self) -> None:
        super().__init__()
        self.codebooks = nn.ModuleList(nn.Embedding(16, 8) for _ in range(2))
        self.proj_in, self.proj_out = nn.Linear(12, 8), nn.Linear(8, 12)

    def encode(self, x: Tensor) -> Tensor:
        residual, codes = self.proj_in(x), []
        for book in self.codebooks:
            distances = (residual[..., None, :] - book.weight).square().sum(-1)
            codes.append(distances.argmin(-1))
            residual = residual - book(codes[-1])
        return torch.stack(codes, -1)

    def decode(self, codes: Tensor) -> Tensor:
        return self.proj_out(sum(book(codes[:, q]) for q, book in enumerate(self.codebooks)))


def _latents(part: Any, frames: int) -> dict[str, tuple[Any, ...]]:
    return {"forward": (torch.randn(2, 6, frames),)}


def _with_speaker(part: Any, frames: int) -> dict[str, tuple[Any, ...]]:
    return {"forward": (torch.randn(2, 6, frames), torch.randn(2, 3, 1))}


def _rows(part: Any, frames: int) -> dict[str, tuple[Any, ...]]:
    x = torch.randn(2, frames, 12)
    return {"encode": (x,), "decode": (part.encode(x)[0],)}


OURS = "this library's tests"
STAND_INS = [
    Family("HiFi-GAN", OURS, lambda small: Generator().eval(), "", _latents, False),
    Family(
        "HiFi-GAN, type 2", OURS, lambda small: Generator(SingleBlock).eval(), "", _latents, False
    ),
    Family(
        "HiFi-GAN, speakers",
        OURS,
        lambda small: Generator(speakers=3).eval(),
        "",
        _with_speaker,
        False,
    ),
    Family("micro-Omni vocoder", OURS, lambda small: HiFiGANVocoder().eval(), "", _latents, False),
    Family("micro-Omni quantizer", OURS, lambda small: RVQ().eval(), "", _rows, False),
]
