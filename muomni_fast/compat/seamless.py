"""The vocoders of transformers' SeamlessM4T, versions 1 and 2: HiFi-GAN on embedded units.

Unit, language and speaker embeddings are concatenated before it, so nothing conditions it inside.
"""

from typing import Any

from torch import Tensor

from .generators import GeneratorAdapter


class SeamlessAdapter(GeneratorAdapter):
    """`forward`: (B, C, T) -> (B, T * hop)."""

    family = "SeamlessM4T"
    classes = (
        "transformers.models.seamless_m4t.modeling_seamless_m4t.SeamlessM4THifiGan",
        "transformers.models.seamless_m4t_v2.modeling_seamless_m4t_v2.SeamlessM4Tv2HifiGan",
    )
    configs = "seamless_m4t", "seamless_m4t_v2", "SeamlessM4TModel", "SeamlessM4Tv2Model"
    bands = "unit_embed_dim", "lang_embed_dim", "spkr_embed_dim"

    @classmethod
    def slope(cls, module: Any) -> float:
        return module.leaky_relu_slope

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        """As the module's own."""
        if not self.fits(inputs_embeds):
            return self.own("forward", inputs_embeds)
        return self.run(inputs_embeds)

    def run(self, mel: Tensor) -> Tensor:
        return self.audio(mel)
