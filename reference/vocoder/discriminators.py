"""HiFi-GAN's multi-period and multi-scale discriminators, for training only.

Kong et al. (2020), section 2.3. Layers and parameter names as in the published code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import accept_wrapped_names, mono
from ..values import MOST_HOP, require_int, require_ints, require_number
from .blocks import LEAKY_SLOPE
from .weight_norm import accept_weights, normed, spectrally_normed

# What a discriminator makes of audio: one score map per sub-discriminator (B, n), and each one's
# feature maps, layer by layer.
Judgement = tuple[list[Tensor], list[list[Tensor]]]


MOST_SCALE = 16  # times the published channels
MOST_SCALES = 16  # each at half the rate of the one before


def _scaled(channels: int, scale: float) -> int:
    scale = require_number("channels_scale", scale)
    if not 0 < scale <= MOST_SCALE:
        raise ValueError(f"channels_scale: expected above 0, at most {MOST_SCALE}, got {scale}")
    return max(1, round(channels * scale))


class PeriodDiscriminator(nn.Module):
    """Judges audio folded to (L / period, period): equally spaced samples side by side."""

    def __init__(self, period: int, channels_scale: float = 1.0) -> None:
        super().__init__()
        self.period = require_int("period", period, 1, MOST_HOP)
        widths = [1, *(_scaled(c, channels_scale) for c in (32, 128, 512, 1024, 1024))]
        self.convs = nn.ModuleList(
            normed(nn.Conv2d(widths[i], widths[i + 1], (5, 1), (3 if i < 4 else 1, 1), (2, 0)))
            for i in range(5)
        )
        self.conv_post = normed(nn.Conv2d(widths[-1], 1, (3, 1), 1, (1, 0)))
        accept_weights(self)

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 1, L) -> scores (B, n), feature maps."""
        missing = -audio.shape[-1] % self.period
        if audio.shape[-1] <= missing:
            raise ValueError(
                f"audio: expected more than {missing} samples for period {self.period}, "
                f"got {audio.shape[-1]}"
            )
        if missing:
            # Mirrored like F.pad's "reflect", whose gradient is not deterministic on CUDA.
            audio = torch.cat([audio, audio[..., -missing - 1 : -1].flip(-1)], dim=-1)
        x = audio.unflatten(-1, (-1, self.period))  # (B, 1, L / period, period)
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), LEAKY_SLOPE)
            features.append(x)
        x = self.conv_post(x)
        return x.flatten(1), [*features, x]


class ScaleDiscriminator(nn.Module):
    """Judges audio at one sampling rate with grouped convolutions."""

    # channels, kernel, stride, groups, padding
    LAYERS = (
        (128, 15, 1, 1, 7),
        (128, 41, 2, 4, 20),
        (256, 41, 2, 16, 20),
        (512, 41, 4, 16, 20),
        (1024, 41, 4, 16, 20),
        (1024, 41, 1, 16, 20),
        (1024, 5, 1, 1, 2),
    )

    def __init__(self, use_spectral_norm: bool = False, channels_scale: float = 1.0) -> None:
        super().__init__()
        norm = spectrally_normed if use_spectral_norm else normed
        self.convs = nn.ModuleList()
        width = 1
        for channels, kernel, stride, groups, padding in self.LAYERS:
            # Scaled widths stay multiples of the layers' groups.
            next_width = 16 * _scaled(channels // 16, channels_scale)
            conv = nn.Conv1d(width, next_width, kernel, stride, padding, groups=groups)
            self.convs.append(norm(conv))
            width = next_width
        self.conv_post = norm(nn.Conv1d(width, 1, 3, 1, 1))
        accept_weights(self)

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, 1, L) -> scores (B, n), feature maps."""
        x, features = audio, []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), LEAKY_SLOPE)
            features.append(x)
        x = self.conv_post(x)
        return x.flatten(1), [*features, x]


class MultiPeriodDiscriminator(nn.Module):
    """One `PeriodDiscriminator` per period.

    Args:
        periods: samples; the published models use (2, 3, 5, 7, 11).
        channels_scale: factor on every layer's channels, for small machines.

    Raises:
        TypeError, ValueError: an argument is of another type, or out of range.
    """

    def __init__(self, periods: Sequence[int] = (2, 3, 5), channels_scale: float = 1.0) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(
            PeriodDiscriminator(period, channels_scale)
            for period in require_ints("periods", periods, 1, MOST_HOP)
        )
        self.register_load_state_dict_pre_hook(accept_wrapped_names)

    def forward(self, audio: Tensor) -> Judgement:
        """Judge audio (B, L): scores and feature maps of every period."""
        audio = mono("audio", audio)[:, None]
        judged = [d(audio) for d in self.discriminators]
        return [scores for scores, _ in judged], [features for _, features in judged]


class MultiScaleDiscriminator(nn.Module):
    """One `ScaleDiscriminator` per scale, each at half the previous rate; the first spectrally
    normed.

    Args:
        n_scales: the published models use 3.
        channels_scale: factor on every layer's channels, for small machines.

    Raises:
        TypeError, ValueError: an argument is of another type, or out of range.
    """

    def __init__(self, n_scales: int = 2, channels_scale: float = 1.0) -> None:
        super().__init__()
        n_scales = require_int("n_scales", n_scales, 1, MOST_SCALES)
        self.discriminators = nn.ModuleList(
            ScaleDiscriminator(scale == 0, channels_scale) for scale in range(n_scales)
        )
        self.meanpools = nn.ModuleList(nn.AvgPool1d(4, 2, padding=2) for _ in range(n_scales - 1))
        self.register_load_state_dict_pre_hook(accept_wrapped_names)

    def forward(self, audio: Tensor) -> Judgement:
        """Judge audio (B, L): scores and feature maps of every scale."""
        x, scores, features = mono("audio", audio)[:, None], [], []
        for scale, discriminator in enumerate(self.discriminators):
            if scale:
                x = self.meanpools[scale - 1](x)
            score, feature = discriminator(x)
            scores.append(score)
            features.append(feature)
        return scores, features
