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

from ..checks import refuse_in_capture, require_lengths, require_mel
from .addends import Addends, add, of_item, require_addends
from .blocks import LEAKY_SLOPE, ResBlock, Sloped, mrf, up_paddings
from .checks import checked_generator
from .published import load_generator
from .streaming import Context, Latency, one_clip, stream
from .weight_norm import CONVOLUTIONS, accept_weights, fold, normed

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


class HiFiGANVocoder(Sloped, nn.Module):
    """HiFi-GAN generator.

    Args:
        n_mels: mel bands.
        upsample_rates: one upsampling level each; their product is the hop, samples per frame.
        upsample_kernel_sizes: of the transposed convolutions, none below its rate; for a rate of 1
            odd. Where kernel - rate is odd, `output_padding` is 1: a level is still exactly its
            rate times as long.
        upsample_initial_channel: channels after `conv_pre`, halved by every level.
        resblock: "1" or "2".
        resblock_kernel_sizes: odd.
        resblock_dilation_sizes: the dilations of each kernel size.
        weight_norm: keep weights normed for training; the state dict then has HiFi-GAN's `weight_g`
            and `weight_v`. Either kind of state dict loads into either kind of model.
        leaky_slope: of every leaky_relu, 0 <= leaky_slope < 1; the one before `conv_post` has 0.01.
        conv_post_bias: whether the last convolution has a bias.
        final: what follows it: "tanh", "clamp" (to [-1, 1]) or None.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range, lengths do not match, or there would be more than
            2^30 weights or 256 dilated convolutions.
    """

    resblock_class: ClassVar[type[ResBlock]] = ResBlock
    final: str | None = "tanh"  # also of what an earlier version pickled

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
        leaky_slope: float = LEAKY_SLOPE,
        conv_post_bias: bool = True,
        final: str | None = "tanh",
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
            conv_post_bias,
            final,
        )
        rates, kernel_sizes = config["upsample_rates"], config["upsample_kernel_sizes"]
        block_sizes = config["resblock_kernel_sizes"], config["resblock_dilation_sizes"]
        channels = config["upsample_initial_channel"]
        self._set_slope(leaky_slope)
        self.config = config | {"leaky_slope": self.leaky_slope}
        self.n_mels = config["n_mels"]
        self.final = final
        self.hop_length = math.prod(rates)
        self.n_kernels = len(block_sizes[0])
        self.conv_pre = nn.Conv1d(self.n_mels, channels, 7, padding=3)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel_size in zip(rates, kernel_sizes, strict=True):
            paddings = up_paddings(kernel_size, rate)
            self.ups.append(
                nn.ConvTranspose1d(channels, channels // 2, kernel_size, rate, *paddings)
            )
            channels //= 2
            for size, dilations in zip(*block_sizes, strict=True):
                self.resblocks.append(
                    self.resblock_class(channels, size, dilations, resblock, leaky_slope)
                )
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3, bias=conv_post_bias)
        if weight_norm:
            for module in list(self.modules()):
                if isinstance(module, CONVOLUTIONS):
                    normed(module)
        accept_weights(self)

    def forward(
        self,
        mel: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        addends: Addends | None = None,
    ) -> Tensor:
        """Generate audio, in [-1, 1] unless `final` is None.

        Args:
            mel: (B, n_mels, T), log-mel frames.
            lengths: (B,) integers 0 to T, frames of each item; None if all have T. An item is then
                generated as if it were alone, and zeros follow its end.
            addends: what is added to the result of `conv_pre`, (B, C, 1) or (B, C, T), and to that
                of each upsampling, (B, C, 1) or (B, C, rows), rows being T times its rate and
                those before; C is `upsample_initial_channel`, half as many after each upsampling.
                None where nothing is added, and at the end they may be left out. A speaker, say,
                or a harmonic source. In the dtype of `mel`.

        Returns:
            (B, T * hop_length).

        Raises:
            TypeError: `mel` is not floating point, or is float8; `lengths` are not integers; an
                addend is of another dtype.
            ValueError: the shape is not (B, n_mels, T >= 1); `lengths` or an addend do not fit.
        """
        require_mel(mel, self.n_mels)
        added = self._require_addends(addends, mel)
        if lengths is not None:
            return self._each_alone(mel, require_lengths(lengths, mel), added)
        return self._generate(mel, added)

    def _require_addends(self, addends: Addends | None, mel: Tensor) -> Addends:
        """One or None for `conv_pre` and for every level."""
        if addends is None:
            return [None] * (1 + len(self.ups))
        config = self.config
        channels, rates = config["upsample_initial_channel"], config["upsample_rates"]
        return require_addends(addends, mel, channels, rates)

    def _generate(self, mel: Tensor, addends: Addends) -> Tensor:
        x = add(self.conv_pre(mel), addends[0])
        for level, up in enumerate(self.ups):
            x = self._mean(level, add(up(F.leaky_relu(x, self.leaky_slope)), addends[level + 1]))
        audio = self.conv_post(F.leaky_relu(x, LAST_LEAKY_SLOPE))[:, 0]
        if self.final == "clamp":
            return audio.clamp(-1, 1)
        return audio if self.final is None else torch.tanh(audio)

    def _resblocks(self, level: int) -> list[nn.Module]:
        """The residual blocks of an upsampling level."""
        return list(self.resblocks[level * self.n_kernels : (level + 1) * self.n_kernels])

    def _mean(self, level: int, x: Tensor) -> Tensor:
        """Their mean, (B, C, T)."""
        return mrf(x, self._resblocks(level))

    def _each_alone(self, mel: Tensor, lengths: Tensor, addends: Addends) -> Tensor:
        refuse_in_capture(lengths.device, "lengths: without kernels they are read, which waits")
        size, items = mel.shape[2] * self.hop_length, []
        for item, frames in enumerate(lengths.tolist()):
            end = frames * self.hop_length
            own, added = mel[item : item + 1, :, :frames], addends
            if frames:
                added = of_item(addends, item, frames, mel.shape[2])
            else:  # one is generated all the same: for its dtype, and zero gradients
                own, added = mel.new_zeros(1, self.n_mels, 1), [None] * len(addends)
            audio = self._generate(own, added)
            items.append(F.pad(audio[:, :end], (0, size - end)))
        return torch.cat(items) if items else mel.new_zeros(0, size)

    def stream(
        self, mel_chunks: Iterable[Tensor | tuple[Tensor, Addends | None]]
    ) -> Iterator[Tensor]:
        """Generate audio while the mel arrives, without gradients.

        Joined, the pieces are the audio of the whole mel, within rounding, whatever the chunks. A
        chunk costs as much as a mel that is `context.past + context.future` frames longer.

        Args:
            mel_chunks: (B, n_mels, t) each, of any t >= 0; or pairs of that and its addends, as
                `forward` takes them: those with one row are added to every row of the chunk.

        Yields:
            (B, n * hop_length): the n >= 1 frames whose audio is complete; `stream_latency` frames
            behind what has arrived, until the end.

        Raises:
            TypeError, ValueError: as in `forward`; a chunk's batch, device or dtype, or where it
                has addends, is not the first one's.
        """
        if isinstance(mel_chunks, Tensor):
            raise TypeError("mel_chunks: expected chunks, as mel.split(8, dim=2), got a tensor")

        def check(mel: Tensor, addends: Addends | None) -> Addends:
            require_mel(mel, self.n_mels)
            return self._require_addends(addends, mel)

        return stream(self, mel_chunks, self.context, self.config["upsample_rates"], check)

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
        """Load a published HiFi-GAN generator, weight norm folded, on the CPU, in float32.

        `MelConfig.from_hifigan(config_json)` gives its mel settings.

        Args:
            config_json: HiFi-GAN's; a `leaky_slope` or `leaky_relu_slope`, `conv_post_bias` and
                `final` in it are taken too.
            checkpoint: a `.pt` file (plain data only) or `.safetensors`; the state dict alone, or
                under "generator", "model", "state_dict" or "model_state_dict"; half precision too.

        Raises:
            CheckpointError: a file cannot be read safely; the config lacks a key, has a value of
                another type or out of range, or a hop that is not the product of the upsample
                rates; or the checkpoint does not fit it, or holds discriminators.
        """
        return load_generator(cls, config_json, checkpoint)
