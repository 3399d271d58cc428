"""HiFi-GAN generator: mel -> waveform.

Kong, Kim and Bae, "HiFi-GAN: Generative Adversarial Networks for Efficient and High Fidelity Speech
Synthesis" (2020), section 2.2 (generator and multi-receptive field fusion) and appendix A.1. Names
of modules and parameters are those of its published code.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..audio.mel import read_hifigan_config
from ..checkpoint import load_foreign_checkpoint, load_state
from ..checks import (
    refuse_in_capture,
    require_channels,
    require_finite,
    require_hop,
    require_lengths,
    require_mel,
)
from ..reading import blaming, open_regular
from ..values import (
    MOST_CHANNELS,
    held_by_file,
    require_choice,
    require_int,
    require_ints,
    require_parameters,
)
from .checks import block_weights, checked_dilations, checked_generator
from .streaming import Context, Latency, one_clip, stream
from .weight_norm import CONVOLUTIONS, accept_both_kinds, fold, normed

LEAKY_SLOPE = 0.1
LAST_LEAKY_SLOPE = 0.01  # before conv_post, as published

# Constructor arguments of the published models (appendix A.1).
_PUBLISHED_12 = {
    "n_mels": 80,
    "upsample_rates": (8, 8, 2, 2),
    "upsample_kernel_sizes": (16, 16, 4, 4),
    "resblock": "1",
    "resblock_kernel_sizes": (3, 7, 11),
    "resblock_dilation_sizes": ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
}
PRESETS: dict[str, dict[str, Any]] = {
    "v1": {**_PUBLISHED_12, "upsample_initial_channel": 512},
    "v2": {**_PUBLISHED_12, "upsample_initial_channel": 128},
    "v3": {
        "n_mels": 80,
        "upsample_rates": (8, 8, 4),
        "upsample_kernel_sizes": (16, 16, 8),
        "upsample_initial_channel": 256,
        "resblock": "2",
        "resblock_kernel_sizes": (3, 5, 7),
        "resblock_dilation_sizes": ((1, 2), (2, 6), (3, 12)),
    },
}


def _conv(channels: int, kernel_size: int, dilation: int) -> nn.Conv1d:
    padding = (kernel_size - 1) // 2 * dilation
    return nn.Conv1d(channels, channels, kernel_size, padding=padding, dilation=dilation)


class ResBlock(nn.Module):
    """Residual block of one kernel size (HiFi-GAN section 2.2).

    Type "1": for each dilation d, x += conv_1(lrelu(conv_d(lrelu(x)))). Type "2": x +=
    conv_d(lrelu(x)).

    Args:
        channels: of input and output.
        kernel_size: odd.
        dilations: one per convolution (pair).
        resblock: "1" or "2".

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range.
    """

    def __init__(
        self, channels: int, kernel_size: int, dilations: Sequence[int], resblock: str = "1"
    ) -> None:
        super().__init__()
        channels = require_int("channels", channels, 1, MOST_CHANNELS)
        kernel_size = require_int("kernel_size", kernel_size, 1, MOST_CHANNELS)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        dilations = require_ints("dilations", dilations, 1, MOST_CHANNELS)
        self.channels = channels
        self.kernel_size = kernel_size
        self.dilations = dilations
        self.resblock = require_choice("resblock", resblock, "1", "2")
        require_parameters(
            f"channels = {channels}, kernel_size = {kernel_size}, {len(dilations)} dilations",
            block_weights(channels, kernel_size, dilations, resblock),
        )
        dilated = nn.ModuleList(_conv(channels, kernel_size, d) for d in dilations)
        if resblock == "1":
            self.convs1 = dilated
            self.convs2 = nn.ModuleList(_conv(channels, kernel_size, 1) for _ in dilations)
        else:
            self.convs = dilated

    @property
    def reach(self) -> int:
        """Rows a side that a row of the result depends on."""
        second = self.resblock == "1"
        return sum((self.kernel_size - 1) // 2 * (d + second) for d in self.dilations)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) -> (B, channels, T).

        Raises:
            TypeError: `x` is not floating point, or is float8.
            ValueError: the shape is not (B, channels, T >= 1).
        """
        require_channels("x", x, self.channels)
        if self.resblock == "2":
            for conv in self.convs:
                x = x + conv(F.leaky_relu(x, LEAKY_SLOPE))
            return x
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            inner = dilated(F.leaky_relu(x, LEAKY_SLOPE))
            x = x + plain(F.leaky_relu(inner, LEAKY_SLOPE))
        return x


def mrf(x: Tensor, resblocks: Sequence[nn.Module]) -> Tensor:
    """Multi-receptive field fusion: the mean over residual blocks of one level, (B, C, T)."""
    return sum(block(x) for block in resblocks) / len(resblocks)


class MRF(nn.Module):
    """Multi-receptive field fusion (HiFi-GAN section 2.2): the mean of ResBlocks of several sizes.

    Args:
        channels: of input and output.
        kernel_sizes: one residual block each, odd.
        dilation_sizes: the dilations of each block.
        resblock: "1" or "2".

    Raises:
        TypeError, ValueError: as `ResBlock`; or lengths do not match.
    """

    resblock_class: ClassVar[type[ResBlock]] = ResBlock

    def __init__(
        self,
        channels: int,
        kernel_sizes: Sequence[int],
        dilation_sizes: Sequence[Sequence[int]],
        resblock: str = "1",
    ) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            self.resblock_class(channels, kernel_size, dilations, resblock)
            for kernel_size, dilations in checked_dilations(kernel_sizes, dilation_sizes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) -> (B, channels, T)."""
        return mrf(x, list(self.resblocks))


class HiFiGANVocoder(nn.Module):
    """HiFi-GAN generator.

    Args:
        n_mels: mel bands.
        upsample_rates: one upsampling level each; their product is the hop, samples per frame.
        upsample_kernel_sizes: of the transposed convolutions; kernel - rate even and not negative.
        upsample_initial_channel: channels after `conv_pre`, halved by every level.
        resblock: "1" or "2".
        resblock_kernel_sizes: odd.
        resblock_dilation_sizes: the dilations of each kernel size.
        weight_norm: keep weights normed for training; the state dict then has HiFi-GAN's `weight_g`
            and `weight_v`. Either kind of state dict loads into either kind of model.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range, lengths do not match, or there would be more than
            2^30 weights or 256 dilated convolutions.
    """

    resblock_class: ClassVar[type[ResBlock]] = ResBlock

    def __init__(
        self,
        n_mels: int = 128,
        upsample_rates: Sequence[int] = (8, 8, 2, 2),
        upsample_kernel_sizes: Sequence[int] = (16, 16, 4, 4),
        upsample_initial_channel: int = 256,
        resblock: str = "1",
        resblock_kernel_sizes: Sequence[int] = (3, 5, 7),
        resblock_dilation_sizes: Sequence[Sequence[int]] = ((1, 2), (1, 2), (1, 2)),
        weight_norm: bool = False,
    ) -> None:
        super().__init__()
        config = checked_generator(
            n_mels,
            upsample_rates,
            upsample_kernel_sizes,
            upsample_initial_channel,
            resblock,
            resblock_kernel_sizes,
            resblock_dilation_sizes,
            weight_norm,
        )
        rates, kernel_sizes = config["upsample_rates"], config["upsample_kernel_sizes"]
        block_sizes = config["resblock_kernel_sizes"], config["resblock_dilation_sizes"]
        channels = config["upsample_initial_channel"]
        self.config = config
        self.n_mels = config["n_mels"]
        self.hop_length = math.prod(rates)
        self.n_kernels = len(block_sizes[0])
        self.conv_pre = nn.Conv1d(self.n_mels, channels, 7, padding=3)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel_size in zip(rates, kernel_sizes, strict=True):
            padding = (kernel_size - rate) // 2
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, kernel_size, rate, padding))
            channels //= 2
            for size, dilations in zip(*block_sizes, strict=True):
                self.resblocks.append(self.resblock_class(channels, size, dilations, resblock))
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3)
        if weight_norm:
            for module in list(self.modules()):
                if isinstance(module, CONVOLUTIONS):
                    normed(module)
        self.register_load_state_dict_pre_hook(accept_both_kinds)
        self.register_load_state_dict_pre_hook(require_finite)

    def forward(self, mel: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Generate audio, in [-1, 1].

        Args:
            mel: (B, n_mels, T), log-mel frames.
            lengths: (B,) integers 0 to T, frames of each item; None if all have T. An item is then
                generated as if it were alone, and zeros follow its end.

        Returns:
            (B, T * hop_length).

        Raises:
            TypeError: `mel` is not floating point, or is float8; `lengths` are not integers.
            ValueError: the shape is not (B, n_mels, T >= 1); `lengths` do not fit.
        """
        require_mel(mel, self.n_mels)
        if lengths is not None:
            return self._each_alone(mel, require_lengths(lengths, mel))
        return self._generate(mel)

    def _generate(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel)
        for level, up in enumerate(self.ups):
            x = self._mean(level, up(F.leaky_relu(x, LEAKY_SLOPE)))
        return torch.tanh(self.conv_post(F.leaky_relu(x, LAST_LEAKY_SLOPE)))[:, 0]

    def _resblocks(self, level: int) -> list[nn.Module]:
        """The residual blocks of an upsampling level."""
        return list(self.resblocks[level * self.n_kernels : (level + 1) * self.n_kernels])

    def _mean(self, level: int, x: Tensor) -> Tensor:
        """Their mean, (B, C, T)."""
        return mrf(x, self._resblocks(level))

    def _each_alone(self, mel: Tensor, lengths: Tensor) -> Tensor:
        refuse_in_capture(lengths.device, "lengths: without kernels they are read, which waits")
        size, items = mel.shape[2] * self.hop_length, []
        for item, frames in zip(mel[:, None], lengths.tolist(), strict=True):
            end = frames * self.hop_length
            # Of no frames one is generated all the same: for its dtype, and zero gradients.
            audio = self._generate(
                item[..., :frames] if frames else mel.new_zeros(1, self.n_mels, 1)
            )
            items.append(F.pad(audio[:, :end], (0, size - end)))
        return torch.cat(items) if items else mel.new_zeros(0, size)

    def stream(self, mel_chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Generate audio while the mel arrives, without gradients.

        Joined, the pieces are the audio of the whole mel, within rounding, whatever the chunks. A
        chunk costs as much as a mel that is `context.past + context.future` frames longer.

        Args:
            mel_chunks: (B, n_mels, t) each, of any t >= 0.

        Yields:
            (B, n * hop_length): the n >= 1 frames whose audio is complete; `stream_latency` frames
            behind what has arrived, until the end.

        Raises:
            TypeError, ValueError: as in `forward`; a chunk's batch, device or dtype is not the
                first one's.
        """
        if isinstance(mel_chunks, Tensor):
            raise TypeError("mel_chunks: expected chunks, as mel.split(8, dim=2), got a tensor")
        check = lambda chunk: require_mel(chunk, self.n_mels)
        return stream(self, mel_chunks, self.context, self.hop_length, check)

    @property
    def context(self) -> Context:
        """Frames before and after its own that a frame's audio depends on."""
        first, last = 0, self.hop_length - 1  # samples of frame 0
        reach = (self.conv_post.kernel_size[0] - 1) // 2
        first, last = first - reach, last + reach
        for level in reversed(range(len(self.ups))):
            blocks: Any = self._resblocks(level)
            reach = max(block.reach for block in blocks)
            up: Any = self.ups[level]
            (size,), (rate,), (padding,) = up.kernel_size, up.stride, up.padding
            # Row t reads rows (t + padding - size, t + padding] / rate.
            first = -((size - 1 - padding - (first - reach)) // rate)
            last = (last + reach + padding) // rate
        reach = (self.conv_pre.kernel_size[0] - 1) // 2
        return Context(past=reach - first, future=last + reach)

    def stream_latency(self, sample_rate: int) -> Latency:
        """The algorithmic latency of `stream`: the frames after its own that a frame waits for.

        Args:
            sample_rate: Hz.
        """
        frames = self.context.future
        return Latency(frames, 1e3 * frames * self.hop_length / sample_rate)

    def mel_to_audio(self, mel: Tensor | np.ndarray) -> Tensor:
        """Generate one clip without gradients: (n_mels, T) -> (T * hop_length,)."""
        return one_clip(self, mel)

    def fold_weight_norm(self) -> Self:
        """Replace normed weights by their values, for inference; returns the model itself.

        Raises:
            ValueError: a value is not finite.
        """
        fold(self)
        self.config["weight_norm"] = False
        return self

    @classmethod
    def from_hifigan(cls, config_json: str | Path, checkpoint: str | Path) -> Self:
        """Load a published HiFi-GAN generator, weight norm folded, on the CPU.

        `MelConfig.from_hifigan(config_json)` gives its mel settings.

        Raises:
            CheckpointError: a file cannot be read safely; the config lacks a key, has a value of
                another type or out of range, or a hop that is not the product of the upsample
                rates; or the checkpoint does not fit it.
        """
        same = [
            "upsample_rates",
            "upsample_kernel_sizes",
            "upsample_initial_channel",
            "resblock",
            "resblock_kernel_sizes",
            "resblock_dilation_sizes",
        ]
        h = read_hifigan_config(config_json, [*same, "num_mels", "hop_size"])
        with open_regular(checkpoint) as (_, size), blaming(config_json), held_by_file(size):
            model = cls(n_mels=h["num_mels"], **{name: h[name] for name in same})
            require_hop(model.hop_length, h["hop_size"])
        load_state(model, load_foreign_checkpoint(checkpoint, "generator"), checkpoint)
        return model.eval()
