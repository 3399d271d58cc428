"""The generator of HiFi-GAN's own code, and of what was made of it: `Generator` in a `models.py`.

There is no package, so the class is known by its name and its modules, and swapped only where a
trial gives the same audio. The generator of VITS's own code is one, with speakers added after the
first convolution.
"""

from typing import Any

from torch import Tensor, nn

from ..reference.vocoder.blocks import LEAKY_SLOPE
from .generators import GeneratorAdapter, Parts


class HiFiGANAdapter(GeneratorAdapter):
    """`forward`: (B, C, T) -> (B, 1, T * hop)."""

    family = "HiFi-GAN"
    classes = ("models.Generator",)

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        own = type(module)
        names = own.__qualname__ == "Generator" and own.__module__.split(".")[-1] == "models"
        return names and {"conv_pre", "ups", "resblocks", "conv_post"} <= module._modules.keys()

    @classmethod
    def parts(cls, module: Any) -> Parts:
        return Parts(module.conv_pre, module.ups, module.resblocks, module.conv_post, LEAKY_SLOPE)

    def forward(self, x: Tensor, *conditions: Any, **named: Any) -> Tensor:
        """As the module's own."""
        given = [c for c in (*conditions, *named.values()) if c is not None]
        if given or not self.fits(x):
            return self.own("forward", x, *conditions, **named)
        return self.run(x)

    def run(self, mel: Tensor) -> Tensor:
        return self.audio(mel)[:, None]
