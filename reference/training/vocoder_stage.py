"""Training the vocoder's generator against discriminators."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import muomni_fast.reference as reference_backend

from ..audio.mel import log_mel
from ..checks import require_hop, require_n_mels
from ..codec import SpeechCodec
from ..vocoder.discriminators import Judgement
from ..vocoder.griffin_lim import GriffinLimVocoder
from ..vocoder.hifigan import PRESETS as PUBLISHED
from ..vocoder.hifigan import HiFiGANVocoder
from .clips import Clip
from .config import Recipe, TrainConfig
from .data import HeldOut, SpeechDataset
from .losses import (
    FEATURE_MATCHING_WEIGHT,
    MEL_WEIGHT,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    spectral_convergence,
)
from .mel_codec import MelCodec, read_mel_codec
from .stage import (
    NOTHING,
    Batch,
    Results,
    SpeechStage,
    StepResult,
    Ways,
    codec_way,
    cosine,
)

# V3's upsampling with two small residual blocks: what two CPU cores learn fastest.
SMALL = {
    "upsample_rates": (8, 8, 4),
    "upsample_kernel_sizes": (16, 16, 8),
    "upsample_initial_channel": 256,
    "resblock": "2",
    "resblock_kernel_sizes": (3, 7),
    "resblock_dilation_sizes": ((1, 3), (1, 3)),
    "weight_norm": True,
}


@dataclasses.dataclass(frozen=True)
class VocoderRecipe(Recipe):
    """Training of the generator and its discriminators (HiFi-GAN section 3); defaults as published.

    `schedule` "exponential" multiplies the learning rates by `decay` each epoch, "cosine" takes
    them to zero over `steps`. Before `adversarial_from` (a share of `steps`) only mel losses count.
    `convergence_weight` adds spectral convergence: a short training that has not learned harmonics
    yet settles, under L1 in the logarithm alone, on their median level, 6 to 8 dB too low.
    `n_scales` 0 leaves discriminators of periods only: on a CPU, one scale takes four times as long
    as three periods.

    `decoded_mels` is the checkpoint of a finished quantizer, and `quantizer` its digest: the
    generator is then given what that quantizer's codes keep of a mel, as it will be in a codec, and
    learns the recording all the same. Both None: the recording's own mel.
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
    decoded_mels: str | None = None
    quantizer: str | None = None

    def shaped_as(self, model: dict[str, Any]) -> dict[str, Any]:
        # Weights load normed or folded, whichever way they were saved.
        return {**model, "weight_norm": self.model.get("weight_norm", False)}

    def check(self, config: TrainConfig) -> None:
        if (self.decoded_mels is None) != (self.quantizer is None):
            raise ValueError(
                "vocoder: decoded_mels and quantizer: expected both or neither, got "
                f"{self.decoded_mels!r} and {self.quantizer!r}"
            )
        if not self.periods and not self.n_scales:
            raise ValueError(
                "vocoder: periods and n_scales: expected one discriminator or more, got "
                f"{self.periods} and {self.n_scales}"
            )
        with torch.device("meta"):  # checks arguments without making weights
            vocoder = HiFiGANVocoder(**self.model)
        require_n_mels(vocoder.n_mels, config.mel.n_mels, "the vocoder")
        require_hop(vocoder.hop_length, config.mel.hop_length)

    def require_readable(self, config: TrainConfig) -> None:
        self.through(config)

    def through(
        self, config: TrainConfig, backend: ModuleType = reference_backend
    ) -> MelCodec | None:
        """The quantizer of `decoded_mels`, if that is set.

        Raises:
            CheckpointError: as `read_mel_codec`.
        """
        if self.decoded_mels is None:
            return None
        return read_mel_codec(self.decoded_mels, config, self.quantizer, backend)


QUICK = VocoderRecipe(
    steps=800,
    batch_size=4,
    model=SMALL,
    learning_rate=1e-3,
    discriminator_learning_rate=1e-3,
    schedule="cosine",
    adversarial_from=0.75,
    periods=(2, 3, 5),
    n_scales=0,
    discriminator_scale=1 / 16,
    convergence_weight=45.0,
)


MUOMNI = "muomni", "muomni-4", "muomni-8", "muomni-62"  # of one mel, so of one vocoder
MUOMNI_RECIPE = VocoderRecipe(
    steps=1_000_000, periods=(2, 3, 5), n_scales=2, model={"weight_norm": True}
)


class VocoderStage(SpeechStage):
    """Learns the generator against its discriminators (HiFi-GAN section 2.4)."""

    name = "vocoder"
    recipe_class = VocoderRecipe
    recipes = {
        "quick": QUICK,
        "smoke": dataclasses.replace(
            QUICK,
            steps=12,
            batch_size=2,
            model={**SMALL, "upsample_initial_channel": 16},
            adversarial_from=0.0,
            n_scales=1,
        ),
        **dict.fromkeys(MUOMNI, MUOMNI_RECIPE),
        # What one core learns best in about half an hour.
        "muomni-62-small": dataclasses.replace(
            QUICK,
            steps=8000,
            model={**SMALL, "upsample_initial_channel": 128},
            learning_rate=2e-3,
            adversarial_from=0.7,
            discriminator_scale=1 / 8,
        ),
        **{n: VocoderRecipe(model={**s, "weight_norm": True}) for n, s in PUBLISHED.items()},
    }

    recipe: VocoderRecipe

    @classmethod
    def model_class(cls, backend: ModuleType) -> type[nn.Module]:
        return backend.HiFiGANVocoder

    def build(self) -> dict[str, nn.Module]:
        backend, recipe = self.backend, self.recipe
        # Not among the models: nothing trains, broadcasts or saves it.
        self.through: MelCodec | None = recipe.through(self.config, backend)
        self.decoded: dict[Clip, Tensor] = {}  # mels of held-out clips
        # With one micro-batch both passes share one forward of the generator; with more, keeping
        # every graph would cost the memory that accumulation saves.
        self.share_forward = self.config.accumulate == 1
        scale = recipe.discriminator_scale
        models = {
            "vocoder": backend.HiFiGANVocoder(**recipe.model).to(self.device),
            "mpd": backend.MultiPeriodDiscriminator(recipe.periods, scale).to(self.device),
        }
        if recipe.n_scales:
            models["msd"] = backend.MultiScaleDiscriminator(recipe.n_scales, scale).to(self.device)
        self.discriminators = nn.ModuleList(m for name, m in models.items() if name != self.name)
        return models

    def begin(self) -> None:
        recipe = self.recipe
        rates = {
            "discriminator": (self.discriminators, recipe.discriminator_learning_rate),
            "generator": (self.product, recipe.learning_rate),
        }
        self.optimisers = {
            name: torch.optim.AdamW(module.parameters(), rate, betas=(0.8, 0.99))
            for name, (module, rate) in rates.items()
        }
        self.adversarial_from = round(recipe.adversarial_from * self.steps)
        self.adversarial = False

    def passes(self, step: int) -> list[str]:
        self.adversarial = step >= self.adversarial_from
        return ["discriminator", "generator"] if self.adversarial else ["generator"]

    def learning_rate_factor(self, step: int, epoch: int) -> float:
        if self.recipe.schedule == "cosine":
            return cosine(step, self.steps)
        return self.recipe.decay**epoch

    def judge(self, audio: Tensor) -> Judgement:
        """Scores and feature maps of all discriminators, in float32."""
        scores, features = [], []
        for discriminator in self.discriminators:
            more_scores, more_features = discriminator(audio)
            scores += [s.float() for s in more_scores]
            features += [[f.float() for f in maps] for maps in more_features]
        return scores, features

    def loss(self, pass_name: str, batch: Batch, earlier: Results = NOTHING) -> StepResult:
        real = batch["audio"]
        # Spectral norm estimates while training; the generator's pass compares under one estimate.
        self.discriminators.train(pass_name == "discriminator")
        if pass_name == "discriminator":
            with torch.set_grad_enabled(self.share_forward):
                fake = self.product(batch["mel"]).float()
            scores, _ = self.judge(torch.cat([real, fake.detach()]))
            halves = [score.chunk(2) for score in scores]
            loss = discriminator_loss([h[0] for h in halves], [h[1] for h in halves])
            kept = fake if self.share_forward else None
            return StepResult(loss, {"discriminator": loss}, weight=len(real), kept=kept)
        fake = earlier["discriminator"].kept if "discriminator" in earlier else None
        if fake is None:
            fake = self.product(batch["mel"]).float()
        made, wanted = log_mel(fake, self.config.mel), log_mel(real, self.config.mel)
        figures = {"mel_l1": F.l1_loss(made, wanted)}
        loss = MEL_WEIGHT * figures["mel_l1"]
        if self.recipe.convergence_weight:
            figures["convergence"] = spectral_convergence(made, wanted)
            loss = loss + self.recipe.convergence_weight * figures["convergence"]
        if self.adversarial:
            self.discriminators.requires_grad_(False)
            with torch.no_grad():
                _, real_features = self.judge(real)
            scores, fake_features = self.judge(fake)
            self.discriminators.requires_grad_(True)
            figures["generator"] = generator_loss(scores)
            figures["feature_matching"] = feature_matching_loss(real_features, fake_features)
            loss = loss + figures["generator"]
            loss = loss + FEATURE_MATCHING_WEIGHT * figures["feature_matching"]
        return StepResult(loss, figures, weight=len(real))

    def checkpoint_extra(self) -> dict[str, Any]:
        return {} if self.through is None else {"decoded_mels": self.through.digest}

    extra_state = checkpoint_extra

    def load_extra_state(self, state: dict[str, Any]) -> None:
        before, now = (values.get("decoded_mels") for values in (state, self.extra_state()))
        if before != now:
            raise ValueError(f"decoded_mels: {before} has become {now}")

    # Measuring and reporting

    @torch.no_grad()
    def validate(self, clips: Sequence[HeldOut]) -> dict[str, float]:
        """Error of the sound's log-mel to the recording's."""
        config = self.config.mel
        made = lambda mel: log_mel(self.product(mel.to(self.device)[None])[0].float(), config).cpu()
        return {"mel_l1": self._mel_l1(made, clips)}

    @torch.no_grad()
    def comparisons(
        self, data: SpeechDataset, clips: Sequence[HeldOut], notes: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Of decoded mels: Griffin-Lim on the same ones, and the mels themselves."""
        if self.through is None:
            return {}
        config = self.config.mel
        griffin_lim = GriffinLimVocoder(config)
        heard = lambda mel: log_mel(griffin_lim(mel[None])[0], config)
        return {
            "griffin_lim": {"mel_l1": self._mel_l1(heard, clips)},
            "decoded": {"mel_l1": self._mel_l1(lambda mel: mel, clips)},
        }

    def _mel_l1(self, made: Callable[[Tensor], Tensor], clips: Sequence[HeldOut]) -> float:
        """Mean error of log-mels (n_mels, T) that are `made` of what the vocoder is given."""
        absolute = count = 0.0
        for clip in clips:
            absolute += float((made(self.given(clip)) - clip.mel).double().abs().sum())
            count += clip.mel.numel()
        return absolute / count

    def given(self, clip: HeldOut) -> Tensor:
        """What the vocoder is given of a held-out clip: its log-mel, or what codes keep of that,
        which takes as much memory again, and is computed once."""
        if self.through is None:
            return clip.mel
        if clip.clip not in self.decoded:
            self.decoded[clip.clip] = self.through(clip.mel)
        return self.decoded[clip.clip]

    @classmethod
    def heard(cls, config: TrainConfig, products: Mapping[str, Any]) -> Ways:
        vocoder = products[cls.name]
        ways: Ways = {"mel-hifigan": lambda clip: vocoder(clip.mel[None])[0]}
        vocoders = {"codec-hifigan": vocoder}
        recipe: VocoderRecipe = config.recipe(cls.name)
        through, rvq = recipe.through(config), products.get("rvq")
        if through is not None:
            rvq = through.rvq
            vocoders["decoded-griffin-lim"] = GriffinLimVocoder(config.mel)
        if rvq is not None:
            pooled = config.frames_per_code, config.pooling
            for name, made_by in vocoders.items():
                ways[name] = codec_way(SpeechCodec(rvq, made_by, config.mel, *pooled))
        return ways

    @classmethod
    def report(cls, results: dict[str, Any]) -> list[str]:
        rows = {"random weights": "random", "weights it began with": "given", "trained": "trained"}
        what = "vocoder, held-out log-mel"
        if "decoded" in results:
            what = "vocoder, held-out decoded log-mel"
            rows |= {"Griffin-Lim": "griffin_lim", "decoded mel itself": "decoded"}
        lines = [f"{what:<34}{'L1':>8}"]
        for name, key in rows.items():
            if key not in results:
                continue
            lines.append(f"{name:<34}{results[key]['mel_l1']:>8.3f}")
        if "decoded" in results:
            ours, other = (results[key]["mel_l1"] for key in ("trained", "griffin_lim"))
            better = "the trained vocoder" if ours < other else "Griffin-Lim"
            lines.append(f"nearer to the recording's log-mel: {better}")
        return lines
