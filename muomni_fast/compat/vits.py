"""The decoder of transformers' `VitsModel`: HiFi-GAN on latents, with a last convolution that has
no bias, and with speakers added after the first one."""

from torch import Tensor

from .generators import GeneratorAdapter


class VitsAdapter(GeneratorAdapter):
    """`forward`: (B, C, T), and (B, speaker, 1) or None -> (B, 1, T * hop)."""

    family = "VITS"
    classes = ("transformers.models.vits.modeling_vits.VitsHifiGan",)
    configs = "vits", "VitsModel"
    bands = ("flow_size",)
    post_bias = False
    outside = ("cond",)

    def forward(self, spectrogram: Tensor, global_conditioning: Tensor | None = None) -> Tensor:
        """As the module's own."""
        if not self.fits(spectrogram, condition=global_conditioning):
            return self.own("forward", spectrogram, global_conditioning)
        return self.run(spectrogram, global_conditioning)

    def run(self, mel: Tensor, speaker: Tensor | None = None) -> Tensor:
        addend = None if speaker is None else self.module.cond(speaker)
        return self.audio(mel, addend)[:, None]
