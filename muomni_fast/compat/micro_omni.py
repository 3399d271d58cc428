"""micro-Omni's codec: `RVQ`, `HiFiGANVocoder`, and the `NeuralVocoder` that holds one.

There is no package, so classes are known by their names and modules, and swapped only where a trial
gives the same. What is peculiar to them lives only here.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..reference.vocoder.blocks import LEAKY_SLOPE
from .adapter import named
from .generators import GeneratorAdapter
from .quantizers import QuantizerAdapter, sum_of_codewords

ROWS = 16  # of the trial
TINY = 1e-8  # added to the range of a mel
LEAST_RANGE = 1e-6  # of a mel that is scaled, where it is not always


class MicroOmniQuantizer(QuantizerAdapter):
    """`encode`: (..., n) -> (..., Q). `decode`: the inverse, for any leading shape, where their own
    takes time for codebooks."""

    family = "micro-Omni"
    classes = ()

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        return named(module, "RVQ", "codebooks", "proj_in", "proj_out")

    @classmethod
    def books(cls, module: Any) -> list[Tensor]:
        return [codebook.weight for codebook in module.codebooks]

    @classmethod
    def misfit(cls, module: Any) -> str:
        reason = super().misfit(module)
        return reason or cls(module)._trial()

    @torch.no_grad()
    def _trial(self) -> str:
        weight: Tensor = self.module.proj_in.weight
        if weight.is_meta:
            return "its weights are on the meta device"
        values = torch.arange(ROWS * weight.shape[1], device=weight.device, dtype=torch.float64)
        rows = (values * 0.7).sin().reshape(ROWS, -1).to(weight.dtype)
        codes = self._codes(rows)
        frames, own = self._frames(codes), self.own("decode", codes)
        if not torch.equal(codes, self.own("encode", rows)) or frames.shape != own.shape:
            return "its own code gives other codes: this version computes something else"
        return "" if torch.allclose(frames, own, atol=1e-4) else "its own code decodes otherwise"

    def encode(self, x: Tensor) -> Tensor:
        """As the module's own; codes are the nearest codewords in real arithmetic."""
        return self._codes(x) if self.takes(x, (2, 3)) else self.own("encode", x)

    def decode(self, codes: Tensor) -> Tensor:
        """(..., Q) -> (..., n)."""
        return self._frames(codes) if self.takes(codes, (2, 3)) else self.own("decode", codes)

    def _codes(self, x: Tensor) -> Tensor:
        return self.codes(self.module.proj_in(x))

    def _frames(self, codes: Tensor) -> Tensor:
        books = self.books(self.module)
        return self.module.proj_out(sum_of_codewords(codes.unbind(-1), books))


class MicroOmniVocoder(GeneratorAdapter):
    """`forward`: (B, n, T), (B, T, n) or (n, T) -> (B, T * hop), cut or filled up to a length. The
    mel is scaled to 0..1 by the least and the greatest value of the whole batch.

    `mel_to_audio`, for NumPy arrays, is its own: it calls `forward`.

    Attributes:
        clamps: whether a mel of one value is cut off at 0 and 1, not scaled.
        squeezes: whether a mel (n, T) gives (T * hop,), not (1, T * hop).
    """

    family = "micro-Omni"
    classes = ()
    upsampling = "ups"
    clamps = squeezes = False

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        return named(module, "HiFiGANVocoder", "conv_pre", "ups", "resblocks", "conv_post")

    @classmethod
    def slope(cls, module: Any) -> float:
        return LEAKY_SLOPE

    def attach(self) -> None:
        super().attach()
        self._find_version()

    def _trial(self, like: Tensor) -> str:
        reason = super()._trial(like)
        if reason:
            return reason
        self._find_version()
        with torch.no_grad():
            return self._compared([*self._others(like)])

    def _others(self, like: Tensor) -> Iterator[tuple[Tensor]]:
        """Mels by which versions differ: of one value, above 1 and below, and of no batch."""
        ((mel,),) = self._trials(like)
        yield from ((torch.full_like(mel, value),) for value in (2.0, 0.5))
        yield (mel[0],)

    @torch.no_grad()
    def _find_version(self) -> None:
        flat, _, single = self._others(self.module.conv_pre.bias)
        self.squeezes = self.own("forward", *single).ndim == 1
        theirs = self.own("forward", *flat)
        self.clamps = False
        error = (self.run(*flat) - theirs).abs().max()
        self.clamps = True
        self.clamps = bool((self.run(*flat) - theirs).abs().max() < error)

    def forward(self, mel: Tensor, target_length: int | None = None) -> Tensor:
        """As the module's own."""
        if not isinstance(mel, Tensor) or mel.ndim not in (2, 3):
            return self.own("forward", mel, target_length)
        if not self.fits(self._laid_out(mel)):
            return self.own("forward", mel, target_length)
        audio = self.run(mel)
        if target_length is None or target_length == audio.shape[-1]:
            return audio
        if target_length < audio.shape[-1]:
            return audio[..., :target_length]
        return F.pad(audio, (0, target_length - audio.shape[-1]))

    def _laid_out(self, mel: Tensor) -> Tensor:
        """(B, n, T)."""
        mel = mel[None] if mel.ndim == 2 else mel
        bands = self.module.conv_pre.in_channels
        return mel if mel.shape[1] == bands else mel.transpose(1, 2)

    def run(self, mel: Tensor) -> Tensor:
        low, high = mel.min(), mel.max()
        scaled = (mel - low) / (high - low + TINY)
        if self.clamps:
            scaled = torch.where(high > low + LEAST_RANGE, scaled, mel.clamp(0, 1))
        audio = self.audio(self._laid_out(scaled))
        return audio[0] if mel.ndim == 2 and self.squeezes else audio


def held_vocoder(model: Any) -> Any:
    """What micro-Omni's `NeuralVocoder` holds, which is no module itself: its `HiFiGANVocoder`, or
    its `GriffinLimVocoder`; None for all else."""
    if type(model).__qualname__ == "NeuralVocoder" and hasattr(model, "mel_to_audio"):
        return getattr(model, "vocoder", None)
    return None
