"""Stand-ins for micro-Omni's codec, of the structure that is known of it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.models import Generator


class HiFiGANVocoder(Generator):
    """Plain convolutions, and a mel scaled by its own range."""

    def forward(self, mel: Tensor, target_length: int | None = None) -> Tensor:
        mel = mel[None] if mel.dim() == 2 else mel
        mel = mel if mel.shape[1] == 6 else mel.transpose(1, 2)
        audio = super().forward(self.scaled(mel)).squeeze(1)
        if target_length is not None:
            audio = audio[:, :target_length]
            missing = target_length - audio.shape[1]
            audio = F.pad(audio, (0, missing)) if missing else audio
        return audio

    def scaled(self, mel: Tensor) -> Tensor:
        return (mel - mel.min()) / (mel.max() - mel.min() + 1e-8)

    def mel_to_audio(self, mel: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(mel).float()
        given = given.T if given.shape[0] > given.shape[1] else given
        with torch.no_grad():
            audio = self.eval().forward(given[None]).numpy()
        return audio / np.abs(audio).max() * 0.95


class LaterVocoder(HiFiGANVocoder):
    """Another version: one value is no range, and (n, T) gives (L,)."""

    def forward(self, mel: Tensor, target_length: int | None = None) -> Tensor:
        audio = super().forward(mel, target_length)
        return audio[0] if mel.dim() == 2 else audio

    def scaled(self, mel: Tensor) -> Tensor:
        if mel.max() > mel.min() + 1e-6:
            return super().scaled(mel)
        return mel.clamp(0, 1)


LaterVocoder.__qualname__ = "HiFiGANVocoder"


class GriffinLimVocoder:
    def mel_to_audio(self, mel: np.ndarray) -> np.ndarray:
        return np.zeros(4)


class NeuralVocoder:
    """No module, but it holds one."""

    def __init__(self, prefer_neural: bool = True) -> None:
        self.vocoder: Any = HiFiGANVocoder() if prefer_neural else GriffinLimVocoder()

    def mel_to_audio(self, mel: np.ndarray) -> np.ndarray:
        return self.vocoder.mel_to_audio(mel)


class RVQ(nn.Module):
    """`decode` is right for (B, Q) only."""

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


class DiscriminatorP(nn.Module):
    """Judges audio folded by a period."""

    def __init__(self, period: int, kernel_size: int = 3, stride: int = 2) -> None:
        super().__init__()
        self.period, widths = period, (1, 4, 8, 8)
        shape = dict(kernel_size=(kernel_size, 1), padding=(kernel_size // 2, 0))
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], stride=(stride if i < 2 else 1, 1), **shape)
            for i in range(3)
        )
        self.conv_post = nn.Conv2d(widths[-1], 1, (3, 1), 1, (1, 0))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = F.pad(x, (0, -x.shape[-1] % self.period))
        return judged(self, x.view(x.shape[0], 1, -1, self.period))


class MultiPeriodDiscriminator(nn.Module):
    def __init__(
        self, periods: list[int] | None = None, kernel_size: int = 3, stride: int = 2
    ) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(
            DiscriminatorP(period, kernel_size, stride) for period in periods or [2, 3, 5]
        )

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        outputs, maps = zip(*(each(x) for each in self.discriminators), strict=True)
        return list(outputs), list(maps)


class DiscriminatorS(nn.Module):
    def __init__(self, use_spectral_norm: bool = False) -> None:
        super().__init__()
        norm = nn.utils.spectral_norm if use_spectral_norm else lambda conv: conv
        self.convs = nn.ModuleList(
            [norm(nn.Conv1d(1, 8, 15, 1, 7)), norm(nn.Conv1d(8, 8, 41, 2, 20, groups=4))]
        )
        self.conv_post = norm(nn.Conv1d(8, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return judged(self, x)


class MultiScaleDiscriminator(nn.Module):
    """Spectral norm on the first scale only."""

    def __init__(self, num_scales: int = 2) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(DiscriminatorS(i == 0) for i in range(num_scales))
        self.pools = nn.ModuleList(nn.AvgPool1d(4, 2, 2) for _ in range(num_scales - 1))

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        outputs, maps = [], []
        for scale, each in enumerate(self.discriminators):
            x = self.pools[scale - 1](x) if scale else x
            output, own = each(x)
            outputs.append(output)
            maps.append(own)
        return outputs, maps


def judged(discriminator: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A discriminator's result, and what its convolutions gave."""
    maps = []
    for conv in discriminator.convs:
        x = F.leaky_relu(conv(x), 0.1)
        maps.append(x)
    x = discriminator.conv_post(x)
    return x, [*maps, x]
