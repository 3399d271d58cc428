"""Training the vocoder's generator against discriminators."""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..audio.mel import log_mel
from ..vocoder.discriminators import Judgement
from .losses import (
    FEATURE_MATCHING_WEIGHT,
    MEL_WEIGHT,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    spectral_convergence,
)
from .presets import TrainConfig
from .stage import NOTHING, Batch, Results, Stage, StepResult, cosine


class VocoderStage(Stage):
    """Learns the generator against its discriminators (HiFi-GAN section 2.4)."""

    name = "vocoder"

    def __init__(self, config: TrainConfig, backend: ModuleType, device: torch.device) -> None:
        self.recipe = recipe = config.vocoder_recipe
        self.steps, self.batch_size = recipe.steps, recipe.batch_size
        self.mel = config.mel
        # With one micro-batch both passes share one forward of the generator; with more, keeping
        # every graph would cost the memory that accumulation saves.
        self.share_forward = config.accumulate == 1
        scale = recipe.discriminator_scale
        self.models = {
            "vocoder": backend.HiFiGANVocoder(**config.vocoder).to(device),
            "mpd": backend.MultiPeriodDiscriminator(recipe.periods, scale).to(device),
            "msd": backend.MultiScaleDiscriminator(recipe.n_scales, scale).to(device),
        }
        self.discriminators = nn.ModuleList([self.models["mpd"], self.models["msd"]])

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
        made, wanted = log_mel(fake, self.mel), log_mel(real, self.mel)
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

    @torch.no_grad()
    def validate(self, clips: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
        absolute = count = 0.0
        device = next(self.product.parameters()).device
        for _, mel in clips:
            made = log_mel(self.product(mel[None].to(device))[0].float(), self.mel)
            absolute += float((made - mel.to(device)).double().abs().sum())
            count += mel.numel()
        return {"mel_l1": absolute / count}
