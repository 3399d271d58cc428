"""What `train.py` trains: one frozen `TrainConfig` per preset, saved with every run."""

import dataclasses
from typing import Any

import torch

from ..audio.mel import MelConfig
from ..checks import require_hop, require_n_mels
from ..rvq.quantizer import RVQ
from ..vocoder.hifigan import PRESETS as PUBLISHED
from ..vocoder.hifigan import HiFiGANVocoder


@dataclasses.dataclass(frozen=True)
class RVQRecipe:
    """Training of the quantizer.

    The codebooks learn from the reconstruction error itself and need a high rate; the projections
    start at principal components, where a straight-through gradient mostly does harm, so theirs is
    low.
    """

    steps: int = 500
    batch_size: int = 64  # segments
    codebook_learning_rate: float = 3e-2
    projection_learning_rate: float = 3e-4
    commitment_weight: float = 0.1
    codebook_weight: float = 0.0
    ema_decay: float | None = None


@dataclasses.dataclass(frozen=True)
class VocoderRecipe:
    """Training of the generator and its discriminators (HiFi-GAN section 3); defaults as published.

    `schedule` "exponential" multiplies the learning rates by `decay` each epoch, "cosine" takes
    them to zero over `steps`. Before `adversarial_from` (a share of `steps`) only mel losses count.
    `convergence_weight` adds spectral convergence: a short training that has not learned harmonics
    yet settles, under L1 in the logarithm alone, on their median level, 6 to 8 dB too low.
    """

    steps: int = 2_500_000
    batch_size: int = 16
    learning_rate: float = 2e-4
    discriminator_learning_rate: float = 2e-4
    schedule: str = "exponential"
    decay: float = 0.999
    adversarial_from: float = 0.0
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    n_scales: int = 3
    discriminator_scale: float = 1.0
    convergence_weight: float = 0.0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on besides its data and machine.

    Raises:
        ValueError: the parts disagree on mel bands, hop or segment length; names both values.
    """

    preset: str
    mel: MelConfig = MelConfig()
    rvq: dict[str, Any] = dataclasses.field(default_factory=dict)
    vocoder: dict[str, Any] = dataclasses.field(default_factory=dict)
    rvq_recipe: RVQRecipe = RVQRecipe()
    vocoder_recipe: VocoderRecipe = VocoderRecipe()
    frames_per_code: int = 1
    segment_samples: int = 8192
    accumulate: int = 1
    amp: str = "none"
    seed: int = 0
    validate_every: int = 5000
    checkpoint_every: int = 5000
    log_every: int = 50

    def __post_init__(self) -> None:
        with torch.device("meta"):  # checks arguments without making weights
            rvq, vocoder = RVQ(**self.rvq), HiFiGANVocoder(**self.vocoder)
        require_n_mels(rvq.n_mels, self.mel.n_mels, "the quantizer")
        require_n_mels(vocoder.n_mels, self.mel.n_mels, "the vocoder")
        require_hop(vocoder.hop_length, self.mel.hop_length)
        unit = self.mel.hop_length * self.frames_per_code
        if self.segment_samples % unit:
            raise ValueError(
                f"segment_samples: expected a multiple of hop_length * frames_per_code = {unit}, "
                f"got {self.segment_samples}"
            )
        if self.amp not in ("none", "bf16", "fp16"):
            raise ValueError(f'amp: expected "none", "bf16" or "fp16", got {self.amp!r}')

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "TrainConfig":
        """Rebuild from what `dataclasses.asdict` and JSON made of a config."""
        parts = {"mel": MelConfig, "rvq_recipe": RVQRecipe, "vocoder_recipe": VocoderRecipe}
        saved = dict(saved)
        for name, part in parts.items():
            saved[name] = part(**saved[name])
        return cls(**saved)


_MEL_22K = MelConfig(sample_rate=22050, n_mels=80)
# V3's upsampling with two small residual blocks: what two CPU cores learn fastest.
_SMALL = {
    "upsample_rates": (8, 8, 4),
    "upsample_kernel_sizes": (16, 16, 8),
    "upsample_initial_channel": 256,
    "resblock": "2",
    "resblock_kernel_sizes": (3, 7),
    "resblock_dilation_sizes": ((1, 3), (1, 3)),
    "weight_norm": True,
}


def _published(name: str) -> TrainConfig:
    vocoder = {**PUBLISHED[name], "weight_norm": True}
    return TrainConfig(name, mel=_MEL_22K, rvq={"n_mels": 80}, vocoder=vocoder)


def presets() -> dict[str, TrainConfig]:
    """All presets by name."""
    quick = TrainConfig(
        "quick",
        vocoder=_SMALL,
        vocoder_recipe=VocoderRecipe(
            steps=1200,
            batch_size=4,
            learning_rate=1e-3,
            discriminator_learning_rate=1e-3,
            schedule="cosine",
            adversarial_from=0.7,
            periods=(2, 3, 5),
            n_scales=1,
            discriminator_scale=1 / 16,
            convergence_weight=45.0,
        ),
        validate_every=200,
        checkpoint_every=200,
        log_every=1,
    )
    smoke = dataclasses.replace(
        quick,
        preset="smoke",
        rvq={"codebook_size": 16, "codebook_dim": 16},
        vocoder={**_SMALL, "upsample_initial_channel": 16},
        rvq_recipe=RVQRecipe(steps=24, batch_size=4),
        vocoder_recipe=dataclasses.replace(
            quick.vocoder_recipe, steps=12, batch_size=2, adversarial_from=0.0
        ),
        segment_samples=2560,
        validate_every=10,
        checkpoint_every=4,
    )
    muomni = TrainConfig(
        "muomni",
        vocoder={"weight_norm": True},
        rvq_recipe=RVQRecipe(steps=20_000),
        vocoder_recipe=VocoderRecipe(steps=1_000_000, periods=(2, 3, 5), n_scales=2),
        frames_per_code=5,
        segment_samples=8960,
    )
    published = [_published(name) for name in PUBLISHED]
    return {config.preset: config for config in (quick, smoke, muomni, *published)}
