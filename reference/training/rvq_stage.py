"""Training the quantizer."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..audio.mel import pool_frames
from ..codec import Quantizer, SpeechCodec, decode_mel, encode_mel, require_pooled
from ..rvq.quantizer import RVQ
from ..vocoder.griffin_lim import GriffinLimVocoder
from .codebook_health import CodebookHealth, start_from_data, usage
from .config import Recipe, TrainConfig
from .data import HeldOut, SpeechDataset
from .stage import NOTHING, Batch, Results, SpeechStage, StepResult, Ways, codec_way

START_FRAMES = 200_000  # frames that a start on data looks at, at most
FIRST, BEAM = (1, 2, 4), 5  # what is reported of quantizers whose prefixes are trained
EQUAL_BITS = ((2, 16), (1, 256))  # codebooks, codes each: 8 bits per frame both


@dataclasses.dataclass(frozen=True)
class RVQRecipe(Recipe):
    """Training of the quantizer.

    The codebooks learn from the reconstruction error itself and need a high rate; the projections
    start at principal components, where a straight-through gradient mostly does harm, so theirs is
    low.

    `codebook_dropout` is the share of segments that go through a random number of codebooks only, 1
    to all of them, so that the first few alone are worth as much as a quantizer of so many.
    """

    steps: int = 500
    batch_size: int = 64  # segments
    codebook_learning_rate: float = 3e-2
    projection_learning_rate: float = 3e-4
    commitment_weight: float = 0.1
    codebook_weight: float = 0.0
    ema_decay: float | None = None
    codebook_dropout: float = 0.0

    def check(self, config: TrainConfig) -> None:
        if not 0 <= self.codebook_dropout <= 1:
            raise ValueError(f"rvq: codebook_dropout: expected 0 to 1, got {self.codebook_dropout}")
        with torch.device("meta"):  # checks arguments without making weights
            n_mels = RVQ(**self.shape(config)).n_mels
        require_pooled(n_mels, config.mel.n_mels, config.frames_per_code, config.pooling)

    def shape(self, config: TrainConfig) -> dict[str, Any]:
        """The quantizer's arguments; `n_mels` is the config's own unless `model` has it."""
        return {"n_mels": config.pooled_width, **self.model}


# Every prefix of the codebooks is a codec. The projections stay at principal components: on 20
# minutes of speech, learning them took back most of what the codebooks won on held-out speakers.
PREFIXES = RVQRecipe(steps=20_000, projection_learning_rate=0.0, codebook_dropout=0.5)


class RVQStage(SpeechStage):
    """Learns the quantizer: mel reconstruction error plus commitment, from a start on data."""

    name = "rvq"
    recipe_class = RVQRecipe
    recipes = {
        # 12.5 codes/s, so that few steps of the Talker say a sentence; eight make up for it.
        "quick": RVQRecipe(model={"n_codebooks": 8}),
        "smoke": RVQRecipe(steps=24, batch_size=4, model={"codebook_size": 16, "codebook_dim": 16}),
        "muomni": dataclasses.replace(PREFIXES, model={}),
        "muomni-4": dataclasses.replace(PREFIXES, model={"n_codebooks": 4}),
        "muomni-8": dataclasses.replace(PREFIXES, model={"n_codebooks": 8}),
        "muomni-62": dataclasses.replace(PREFIXES, model={"n_codebooks": 8}),
        "muomni-62-small": dataclasses.replace(PREFIXES, model={"n_codebooks": 8}),
    }
    starts_from_data = True
    by_length = True
    unplotted = ("revived",)

    recipe: RVQRecipe

    @classmethod
    def model_class(cls, backend: ModuleType) -> type[nn.Module]:
        return backend.RVQ

    def build(self) -> dict[str, nn.Module]:
        self.rvq: RVQ = self.backend.RVQ(**self.recipe.shape(self.config)).to(self.device)
        return {"rvq": self.rvq}

    def start(self, data: SpeechDataset) -> None:
        start_from_data(self.rvq, self._start_rows(data), self._generator())

    def _start_rows(self, data: SpeechDataset) -> Tensor:
        """(N, rvq.n_mels)."""
        return self._pooled(data.frames(START_FRAMES))

    def _pooled(self, frames: Tensor) -> Tensor:
        return pool_frames(frames, self.config.frames_per_code, self.config.pooling)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.config.seed)

    def split(self, batch: dict[str, Any], n: int) -> list[Batch]:
        parts = super().split(batch, n)
        if min(batch["frames"]) < batch["mel"].shape[2]:  # clips shorter than a segment
            frames = torch.tensor(batch["frames"])  # on the CPU, where the loop asks for weights
            for part, chunk in zip(parts, frames.chunk(n), strict=True):
                part["frames"] = chunk
        if self.recipe.codebook_dropout:
            drawn = torch.tensor([self._drawn_codebooks(int(p)) for p in batch["positions"]])
            for part, chunk in zip(parts, drawn.to(self.device).chunk(n), strict=True):
                part["n_codebooks"] = chunk
        return parts

    def _drawn_codebooks(self, position: int) -> int:
        """Codebooks that the segment at a position goes through: the same after a resume, and in
        whichever process it is."""
        draw = np.random.default_rng((self.config.seed, position, 2))  # apart from the crop's
        some = int(draw.integers(1, self.rvq.n_codebooks + 1))
        return some if draw.random() < self.recipe.codebook_dropout else self.rvq.n_codebooks

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
        mel, rows = self._rows(batch)  # (B, S, rvq.n_mels)
        lengths = None if rows is None else rows.to(mel.device)
        out = self.rvq(mel, batch.get("n_codebooks"), lengths)
        weight = mel.shape[0] * mel.shape[1]
        if rows is None:
            mse = F.mse_loss(out.mel, mel)
        else:
            weight = int(rows.sum())
            within = torch.arange(mel.shape[1]) < rows[:, None]
            mse = F.mse_loss(out.mel[within], mel[within])
        commitment, codebook = out.commitment_loss, out.codebook_loss
        if "n_codebooks" in batch:
            # Of all rows rather than those that reach a codebook: so micro-batches add up.
            order = torch.arange(self.rvq.n_codebooks, device=mel.device)
            reach = (batch["n_codebooks"][:, None] > order).to(commitment.dtype)  # (B, Q)
            each = mel.shape[1] if lengths is None else lengths[:, None]  # rows of an item
            share = (reach * each).sum(0) / weight
            commitment, codebook = commitment * share, codebook * share
        commitment, codebook = commitment.sum(), codebook.sum()
        loss = mse + self.recipe.commitment_weight * commitment
        loss = loss + self.recipe.codebook_weight * codebook
        figures = {"mel_mse": mse, "commitment": commitment, "codebook": codebook}
        return StepResult(loss, figures, weight=weight, kept=(mel, out.codes))

    def _rows(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """What is quantized, (B, S, rvq.n_mels), and how many of an item's rows are not padding,
        (B,) on the CPU; None is all."""
        mel = batch["mel"].transpose(1, 2)  # (B, T, n_mels)
        if "frames" not in batch:
            return self._pooled(mel), None
        frames = batch["frames"]
        # Within a group padding repeats the last frame, as the end of a whole clip does.
        place = torch.minimum(torch.arange(mel.shape[1]), frames[:, None] - 1).to(mel.device)
        mel = mel.gather(1, place[..., None].expand_as(mel))
        return self._pooled(mel), -(-frames // self.config.frames_per_code)

    def after_step(self, results: Sequence[Results]) -> dict[str, float]:
        mels, all_codes = zip(*(result["rvq"].kept for result in results), strict=True)
        mel, codes = torch.cat(mels), torch.cat(all_codes)
        return {"revived": float(self.health.after_step(mel, codes))}

    def validate(self, clips: Sequence[HeldOut]) -> dict[str, float]:
        mels = [clip.mel.to(self.device) for clip in clips]
        return validate_rvq(self.rvq, mels, self.config.frames_per_code, self.config.pooling)

    def extra_state(self) -> dict[str, Any]:
        return self.health.state_dict()

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.health.load_state_dict(state)

    @torch.no_grad()
    def comparisons(
        self, data: SpeechDataset, clips: Sequence[HeldOut], notes: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Figures at the PCA + k-means start of several sizes of quantizer; with dropout also of
        the first codebooks alone, and of all with a beam.

        One codebook, two, the config's number of them (known from training), and two small
        quantizers of equal bits; one codebook with all of the config's bits would have more codes
        than there are frames.
        """
        mels, config = [clip.mel for clip in clips], self.config
        rows = self._start_rows(data)
        own_size = (self.rvq.n_codebooks, self.rvq.codebook_size)
        figures = {}
        for n_codebooks, size in dict.fromkeys(
            [(1, own_size[1]), (2, own_size[1]), own_size, *EQUAL_BITS]
        ):
            name = f"{n_codebooks} x {size}"
            if (n_codebooks, size) == own_size and "start" in notes:
                figures[name] = notes["start"]
                continue
            shape = {"n_codebooks": n_codebooks, "codebook_size": size}
            rvq = self.backend.RVQ(**(self.recipe.shape(config) | shape))
            start_from_data(rvq, rows, self._generator())
            figures[name] = validate_rvq(rvq, mels, config.frames_per_code, config.pooling)
        results: dict[str, Any] = {"sizes": figures}
        if self.recipe.codebook_dropout:
            first = [k for k in FIRST if k < own_size[0]]
            parts = {f"first {k} of {own_size[0]}": _Part(self.rvq, k) for k in first}
            parts[f"beam {BEAM}"] = _Part(self.rvq, own_size[0], BEAM)
            results["parts"] = {
                name: validate_rvq(part, mels, config.frames_per_code, config.pooling)
                for name, part in parts.items()
            }
        return results

    @classmethod
    def heard(cls, config: TrainConfig, products: Mapping[str, Any]) -> Ways:
        vocoder = GriffinLimVocoder(config.mel)
        codec = SpeechCodec(
            products[cls.name], vocoder, config.mel, config.frames_per_code, config.pooling
        )
        return {"codec-griffin-lim": codec_way(codec)}

    @classmethod
    def report(cls, results: dict[str, Any]) -> list[str]:
        n = len([key for key in results["trained"] if key.startswith("usage_")])
        before = {
            "random weights": "random",
            "PCA + k-means start": "start",
            "weights it began with": "given",
            "trained": "trained",
        }
        rows = {name: results[key] for name, key in before.items() if key in results}
        rows |= {f"trained, {name}": f for name, f in results.get("parts", {}).items()}
        rows |= {f"PCA + k-means start, {size}": f for size, f in results["sizes"].items()}
        lines = [
            f"{'quantizer, held-out log-mel':<34}{'MSE':>8}{'L1':>8}"
            "   use and perplexity by codebook"
        ]
        for name, figures in rows.items():
            use = ", ".join(
                f"{figures[f'usage_{i}']:.0%} {figures[f'perplexity_{i}']:.0f}"
                for i in range(1, n + 1)
                if f"usage_{i}" in figures
            )
            lines.append(f"{name:<34}{figures['mel_mse']:>8.3f}{figures['mel_l1']:>8.3f}   {use}")
        return lines


class _Part:
    """A quantizer that stops after some codebooks, or has a beam."""

    def __init__(self, rvq: RVQ, n_codebooks: int, beam: int = 1) -> None:
        self.rvq, self.n_codebooks, self.beam = rvq, n_codebooks, beam
        self.codebook_size = rvq.codebook_size

    def encode(self, mel: Tensor) -> Tensor:
        return self.rvq.encode(mel, n_codebooks=self.n_codebooks, beam=self.beam)

    def decode(self, codes: Tensor) -> Tensor:
        return self.rvq.decode(codes)


@torch.no_grad()
def validate_rvq(
    rvq: Quantizer, mels: Sequence[Tensor], frames_per_code: int = 1, pooling: str = "mean"
) -> dict[str, float]:
    """Error over all frames of log-mels (n_mels, T), and each codebook's use of its codes."""
    squared = absolute = count = 0.0
    all_codes = []
    for mel in mels:
        codes = encode_mel(rvq, mel, frames_per_code, pooling)  # (S, Q)
        error = decode_mel(rvq, codes, frames_per_code, pooling)[:, : mel.shape[1]] - mel
        squared += float(error.double().square().sum())
        absolute += float(error.double().abs().sum())
        count += error.numel()
        all_codes.append(codes)
    used, perplexity = usage(torch.cat(all_codes), rvq.codebook_size)
    figures = {"mel_mse": squared / count, "mel_l1": absolute / count}
    for q in range(rvq.n_codebooks):
        figures[f"usage_{q + 1}"] = float(used[q])
        figures[f"perplexity_{q + 1}"] = float(perplexity[q])
    return figures
