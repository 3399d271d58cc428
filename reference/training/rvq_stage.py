"""Training the quantizer."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..audio.mel import pool_frames
from ..codec import Quantizer, decode_mel, encode_mel
from ..rvq.quantizer import RVQ
from .codebook_health import CodebookHealth, start_from_data, usage
from .presets import TrainConfig
from .stage import NOTHING, Batch, Results, Stage, StepResult


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

    def loss(self, pass_name: str, batch: Batch, earlier: Results = NOTHING) -> StepResult:
        mel = pool_frames(
            batch["mel"].transpose(1, 2), self.config.frames_per_code
        )  # (B, S, n_mels)
        out = self.rvq(mel)
        mse = F.mse_loss(out.mel, mel)
        commitment, codebook = out.commitment_loss.sum(), out.codebook_loss.sum()
        loss = mse + self.recipe.commitment_weight * commitment
        loss = loss + self.recipe.codebook_weight * codebook
        figures = {"mel_mse": mse, "commitment": commitment, "codebook": codebook}
        return StepResult(loss, figures, weight=len(mel), kept=(mel, out.codes))

    def after_step(self, results: Sequence[Results]) -> dict[str, float]:
        mels, all_codes = zip(*(result["rvq"].kept for result in results), strict=True)
        mel, codes = torch.cat(mels), torch.cat(all_codes)
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
