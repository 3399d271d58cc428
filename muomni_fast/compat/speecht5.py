"""transformers' `SpeechT5HifiGan`, and `FastSpeech2ConformerHifiGan`, which computes the same.

HiFi-GAN (Kong, Kim and Bae, 2020) on frames-first mels, normalised by two buffers where the config
says so.
"""

from typing import Any, ClassVar

from torch import Tensor

from .generators import GeneratorAdapter


class SpeechT5Adapter(GeneratorAdapter):
    """`forward`: (B, T, C) -> (B, T * hop), or (T, C) -> (T * hop,)."""

    family = "SpeechT5"
    classes = ("transformers.models.speecht5.modeling_speecht5.SpeechT5HifiGan",)
    # Before transformers 5, FastSpeech2Conformer's is a "hifigan" too.
    configs: ClassVar[tuple[str, ...]] = "speecht5_hifigan", "hifigan", "SpeechT5HifiGan"
    frames_first = True
    bands = ("model_in_dim",)
    outside = "mean", "scale"

    def forward(self, spectrogram: Tensor, **kwargs: Any) -> Tensor:
        """As the module's own."""
        if not self.fits(spectrogram, (2, 3)):
            return self.own("forward", spectrogram, **kwargs)
        return self.run(spectrogram)

    def run(self, mel: Tensor) -> Tensor:
        if self.module.config.normalize_before:
            mel = (mel - self.module.mean) / self.module.scale
        if mel.ndim == 2:
            return self.audio(mel.t()[None])[0]
        return self.audio(mel.transpose(1, 2))


class FastSpeech2ConformerAdapter(SpeechT5Adapter):
    """The same."""

    family = "FastSpeech2Conformer"
    classes = (
        "transformers.models.fastspeech2_conformer.modeling_fastspeech2_conformer."
        "FastSpeech2ConformerHifiGan",
    )
    configs = "fastspeech2_conformer_hifigan", "FastSpeech2ConformerHifiGan"
