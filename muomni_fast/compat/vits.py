"""The decoder of transformers' `VitsModel`: HiFi-GAN on latents, with a last convolution that has
no bias, and with speakers added after the first one."""

from torch import Tensor

from .generators import GeneratorAdapter


class VitsAdapter(GeneratorAdapter):
    """`forward`: (B, C, T) -> (B, 1, T * hop)."""

    family = "VITS"
    classes = ("transformers.models.vits.modeling_vits.VitsHifiGan",)

    def forward(self, spectrogram: Tensor, global_conditioning: Tensor | None = None) -> Tensor:
        """As the module's own."""
        if global_conditioning is not None or not self.fits(spectrogram):
            return self.own("forward", spectrogram, global_conditioning)
        return self.run(spectrogram)

    def run(self, mel: Tensor) -> Tensor:
        return self.audio(mel)[:, None]
