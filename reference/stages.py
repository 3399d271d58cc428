"""The stages of training: what each one learns, for the one loop of `trainer.py` to run.

A stage is a small object: its models, an optimiser for each pass of a step, the loss of a pass, and
how it is validated. It knows nothing of accumulation, precision, processes, logging or checkpoints.
"""

import abc
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .codebook_health import CodebookHealth, start_from_data, usage
from .discriminators import Judgement
from .losses import (
    FEATURE_MATCHING_WEIGHT,
    MEL_WEIGHT,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    spectral_convergence,
)
from .mel import log_mel, pool_frames
from .pipeline import Quantizer, decode_mel, encode_mel
from .presets import TrainConfig
from .rvq import RVQ

Batch = dict[str, Tensor]


class Stage(abc.ABC):
    """One stage of training.

    Attributes:
        name: of the stage; also the kind and name of its model checkpoint.
        starts_from_data: whether `start` does anything.
        by_length: whether a clip counts by its length, or once an epoch.
        steps, batch_size: of its recipe.
        models: all modules with learned state; the one called `name` is the product.
        optimisers: one per pass, in the order a step runs them.
    """

    name: str
    starts_from_data = False
    by_length = False
    steps: int
    batch_size: int
    models: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]

    @abc.abstractmethod
    def loss(self, pass_name: str, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one pass over one (micro-)batch, and figures to log."""

    @abc.abstractmethod
    def validate(self, clips: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Held-out figures of whole clips (audio (L,), log-mel (n_mels, T))."""

    @abc.abstractmethod
    def begin(self) -> None:
        """Make the optimisers: once weights are in place, before the first step or a restore."""

    def start(self, frames: Tensor) -> None:
        """Set weights from data, where `starts_from_data`: (N, n_mels) frames on the CPU."""
        raise NotImplementedError

    def passes(self, step: int) -> list[str]:
        """The passes of this step, in order."""
        return list(self.optimisers)

    def learning_rate_factor(self, step: int, epoch: int) -> float:
        """What the optimisers' own rates are multiplied by."""
        return cosine(step, self.steps)

    def after_step(self, parts: Sequence[Batch]) -> dict[str, float]:
        """Upkeep after a step over its micro-batches; figures to log."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """What resuming needs beyond models and optimisers."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` gave."""
        assert not state

    @property
    def product(self) -> nn.Module:
        """The model this stage is for."""
        return self.models[self.name]


def cosine(step: int, steps: int) -> float:
    """Half a cosine from 1 at step 0 to 0 at `steps`."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


class RVQStage(Stage):
    """Learns the quantizer: mel reconstruction error plus commitment, from a start on data."""

    name = "rvq"
    starts_from_data = True
    by_length = True

    def __init__(self, config: TrainConfig, backend: ModuleType, device: torch.device) -> None:
        self.recipe = config.rvq_recipe
        self.steps, self.batch_size = self.recipe.steps, self.recipe.batch_size
        self.config = config
        self.rvq: RVQ = backend.RVQ(**config.rvq).to(device)
        self.models = {"rvq": self.rvq}

    def start(self, frames: Tensor) -> None:
        pooled = pool_frames(frames, self.config.frames_per_code)
        start_from_data(self.rvq, pooled, torch.Generator().manual_seed(self.config.seed))

    def begin(self) -> None:
        codebooks = self.rvq.codebook_weights()
        others = [p for name, p in self.rvq.named_parameters() if "codebooks" not in name]
        groups = [{"params": codebooks, "lr": self.recipe.codebook_learning_rate}]
        if others:
            groups.append({"params": others, "lr": self.recipe.projection_learning_rate})
        optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.optimisers = {"rvq": optimiser}
        self.health = CodebookHealth(
            self.rvq, optimiser, ema_decay=self.recipe.ema_decay, seed=self.config.seed
        )

    def loss(self, pass_name: str, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        mel = pool_frames(
            batch["mel"].transpose(1, 2), self.config.frames_per_code
        )  # (B, S, n_mels)
        out = self.rvq(mel)
        mse = F.mse_loss(out.mel, mel)
        commitment, codebook = out.commitment_loss.sum(), out.codebook_loss.sum()
        batch["pooled"], batch["codes"] = mel, out.codes
        loss = mse + self.recipe.commitment_weight * commitment
        loss = loss + self.recipe.codebook_weight * codebook
        return loss, {"mel_mse": mse, "commitment": commitment, "codebook": codebook}

    def after_step(self, parts: Sequence[Batch]) -> dict[str, float]:
        mel = torch.cat([part["pooled"] for part in parts])
        codes = torch.cat([part["codes"] for part in parts])
        return {"revived": float(self.health.after_step(mel, codes))}

    @torch.no_grad()
    def validate(self, clips: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
        device = self.rvq.codebook_weights()[0].device
        return validate_rvq(
            self.rvq, [mel.to(device) for _, mel in clips], self.config.frames_per_code
        )

    def extra_state(self) -> dict[str, Any]:
        return self.health.state_dict()

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.health.load_state_dict(state)


@torch.no_grad()
def validate_rvq(
    rvq: Quantizer, mels: Sequence[Tensor], frames_per_code: int = 1
) -> dict[str, float]:
    """Error over all frames of log-mels (n_mels, T), and each stage's use of its codes."""
    squared = absolute = count = 0.0
    all_codes = []
    for mel in mels:
        codes = encode_mel(rvq, mel, frames_per_code)  # (S, Q)
        error = decode_mel(rvq, codes, frames_per_code)[:, : mel.shape[1]] - mel
        squared += float(error.double().square().sum())
        absolute += float(error.double().abs().sum())
        count += error.numel()
        all_codes.append(codes)
    used, perplexity = usage(torch.cat(all_codes), rvq.codebook_size)
    figures = {"mel_mse": squared / count, "mel_l1": absolute / count}
    for stage in range(rvq.n_codebooks):
        figures[f"usage_{stage + 1}"] = float(used[stage])
        figures[f"perplexity_{stage + 1}"] = float(perplexity[stage])
    return figures


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

    def loss(self, pass_name: str, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        real = batch["audio"]
        # Spectral norm estimates while training; the generator's pass compares under one estimate.
        self.discriminators.train(pass_name == "discriminator")
        if pass_name == "discriminator":
            with torch.set_grad_enabled(self.share_forward):
                fake = self.product(batch["mel"]).float()
            if self.share_forward:
                batch["fake"] = fake
            scores, _ = self.judge(torch.cat([real, fake.detach()]))
            halves = [score.chunk(2) for score in scores]
            loss = discriminator_loss([h[0] for h in halves], [h[1] for h in halves])
            return loss, {"discriminator": loss}
        fake = batch.pop("fake") if "fake" in batch else self.product(batch["mel"]).float()
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
        return loss, figures

    @torch.no_grad()
    def validate(self, clips: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
        absolute = count = 0.0
        device = next(self.product.parameters()).device
        for _, mel in clips:
            made = log_mel(self.product(mel[None].to(device))[0].float(), self.mel)
            absolute += float((made - mel.to(device)).double().abs().sum())
            count += mel.numel()
        return {"mel_l1": absolute / count}


STAGES: dict[str, type[RVQStage] | type[VocoderStage]] = {"rvq": RVQStage, "vocoder": VocoderStage}
