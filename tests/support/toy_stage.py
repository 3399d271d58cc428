"""A third stage of training, with ragged items: predicts a clip's next code.

As a script it is `train.py` with this stage, for several processes.
"""

import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muomni_fast.reference import train
from muomni_fast.reference.training.config import Recipe
from muomni_fast.reference.training.data import Corpus, HeldOut, SpeechDataset, TrainingData
from muomni_fast.reference.training.registry import register
from muomni_fast.reference.training.stage import NOTHING, Results, Stage, StepResult


@dataclasses.dataclass(frozen=True)
class ToyRecipe(Recipe):
    steps: int = 8
    batch_size: int = 4
    learning_rate: float = 1.0


class Bigram(nn.Module):
    """Scores of the next code, in float64: codes (N,) -> (N, size)."""

    def __init__(self, size: int = 16, dim: int = 8) -> None:
        super().__init__()
        self.config = {"size": size, "dim": dim}
        self.embedding = nn.Embedding(size, dim)
        self.head = nn.Linear(dim, size)
        self.double()

    def forward(self, codes: Tensor) -> Tensor:
        return self.head(self.embedding(codes))


class RaggedMels(TrainingData):
    """Lists of log-mels (T, n_mels) of very different lengths."""

    def __init__(self, speech: SpeechDataset) -> None:
        self.speech = speech
        self.entries = speech.clips

    def __getitem__(self, step: int) -> list[Tensor]:
        mels = []
        for item in self.speech.share:
            position = step * self.speech.batch_size + item
            length = int(np.random.default_rng(position).integers(2, 60))
            mels.append(self.speech.load(self.speech.clip_of(position))[1].T[:length])
        return mels


class ToyStage(Stage[RaggedMels]):
    name = "toy"
    recipe_class = ToyRecipe
    requires = ("rvq",)
    max_grad_norm = 0.25
    recipe: ToyRecipe

    @classmethod
    def model_class(cls, backend: ModuleType) -> type[nn.Module]:
        return Bigram

    def build(self) -> dict[str, nn.Module]:
        return {"toy": Bigram(**self.recipe.model).to(self.device)}

    def dataset(self, corpus: Corpus) -> RaggedMels:
        config, share = self.config, (corpus.rank, corpus.world_size)
        samples, seed = config.segment_samples, config.seed
        return RaggedMels(
            SpeechDataset(corpus.clips, config.mel, samples, self.batch_size, seed, *share)
        )

    def split(self, batch: list[Tensor], n: int) -> list[list[Tensor]]:
        size = len(batch) // n
        return [[mel.to(self.device) for mel in batch[i * size :][:size]] for i in range(n)]

    def begin(self) -> None:
        self.optimisers = {
            "toy": torch.optim.SGD(self.product.parameters(), self.recipe.learning_rate)
        }

    def scores(self, mels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores of all codes but the first of each mel, and those codes."""
        codes = [self.required["rvq"].encode(mel)[:, 0] for mel in mels]
        scores = self.product(torch.cat([c[:-1] for c in codes]))
        return scores, torch.cat([c[1:] for c in codes])

    def loss(self, pass_name: str, batch: list[Tensor], earlier: Results = NOTHING) -> StepResult:
        scores, codes = self.scores(batch)
        right = (scores.argmax(1) == codes).double().mean()
        return StepResult(
            F.cross_entropy(scores, codes), {"right": right}, torch.tensor(len(codes)), kept=codes
        )

    def after_step(self, results: Sequence[Results]) -> dict[str, float]:
        return {"micro_batches": float(len(results))}

    @torch.no_grad()
    def validate(self, clips: Sequence[HeldOut]) -> dict[str, float]:
        scores, codes = self.scores([clip.mel.T.to(self.device) for clip in clips])
        return {"nats": float(F.cross_entropy(scores, codes))}

    @classmethod
    def report(cls, results: dict[str, Any]) -> list[str]:
        return [f"next code, held-out: {results['trained']['nats']:.3f} nats"]


if __name__ == "__main__":
    register(ToyStage)
    raise SystemExit(train.main())
