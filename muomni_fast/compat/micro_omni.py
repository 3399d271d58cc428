"""micro-Omni's codec: `RVQ` and `HiFiGANVocoder`, which this library replaces.

There is no package, so classes are known by their names and modules, and swapped only where a trial
gives the same. What is peculiar to them lives only here.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..reference.vocoder.blocks import LEAKY_SLOPE
from .generators import GeneratorAdapter
from .quantizers import QuantizerAdapter, sum_of_codewords

ROWS = 16  # of the trial
TINY = 1e-8  # added to the range of a mel


def _named(module: nn.Module, name: str, *inside: str) -> bool:
    """Whether a class that is not ours has this name and these modules."""
    cls = type(module)
    ours = cls.__module__.split(".")[0] == "muomni_fast"
    return cls.__qualname__ == name and not ours and set(inside) <= module._modules.keys()


class MicroOmniQuantizer(QuantizerAdapter):
    """`encode`: (..., n) -> (..., Q). `decode`: the inverse, for any leading shape, where their own
    takes time for codebooks."""

    family = "micro-Omni"
    classes = ()

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        return _named(module, "RVQ", "codebooks", "proj_in", "proj_out")

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
    mel is scaled to 0..1 by the least and the greatest value of the whole batch."""

    family = "micro-Omni"
    classes = ()
    upsampling = "ups"

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        return _named(module, "HiFiGANVocoder", "conv_pre", "ups", "resblocks", "conv_post")

    @classmethod
    def slope(cls, module: Any) -> float:
        return LEAKY_SLOPE

    def forward(self, mel: Tensor, target_length: int | None = None) -> Tensor:
        """As the module's own."""
        if not isinstance(mel, Tensor) or mel.ndim not in (2, 3):
            return self.own("forward", mel, target_length)
        laid_out = self._laid_out(mel)
        if not self.fits(laid_out):
            return self.own("forward", mel, target_length)
        audio = self.run(laid_out)
        if target_length is None:
            return audio
        return F.pad(audio[:, :target_length], (0, max(0, target_length - audio.shape[1])))

    def _laid_out(self, mel: Tensor) -> Tensor:
        """(B, n, T)."""
        mel = mel[None] if mel.ndim == 2 else mel
        bands = self.module.conv_pre.in_channels
        return mel if mel.shape[1] == bands else mel.transpose(1, 2)

    def run(self, mel: Tensor) -> Tensor:
        low, high = mel.min(), mel.max()
        return self.audio((mel - low) / (high - low + TINY))
