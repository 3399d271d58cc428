"""The generator of HiFi-GAN's own code, and of what was made of it: `Generator` in a `models.py`.

There is no package, so the class is known by its name and its modules, and swapped only where a
trial gives the same audio. The generator of VITS's own code is one, with speakers added after the
first convolution.
"""

from typing import Any

from torch import Tensor, nn

from ..reference.vocoder.blocks import LEAKY_SLOPE
from .generators import GeneratorAdapter


class HiFiGANAdapter(GeneratorAdapter):
    """`forward`: (B, C, T), and (B, speaker, 1) or None -> (B, 1, T * hop)."""

    family = "HiFi-GAN"
    classes = ("models.Generator",)
    upsampling = "ups"

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        own = type(module)
        names = own.__qualname__ == "Generator" and own.__module__.split(".")[-1] == "models"
        return names and {"conv_pre", "ups", "resblocks", "conv_post"} <= module._modules.keys()

    @classmethod
    def slope(cls, module: Any) -> float:
        return LEAKY_SLOPE

    def forward(self, x: Tensor, g: Tensor | None = None, **others: Any) -> Tensor:
        """As the module's own; HiFi-GAN's takes no `g`, and what was made of it may take others."""
        known = not others and (g is None or hasattr(self.module, "cond"))
        if not known or not self.fits(x, condition=g):
            result: Tensor = self.own("forward", x, *(() if g is None else (g,)), **others)
            return result
        return self.run(x, g)

    def run(self, mel: Tensor, speaker: Tensor | None = None) -> Tensor:
        addend = None if speaker is None else self.module.cond(speaker)
        return self.audio(mel, addend)[:, None]
