"""What one stage of training learns, for the one loop of `trainer.py` to run.

A stage owns its recipe and presets, its models with an optimiser for each pass of a step, its
training data, the loss of a pass, how it is validated, and its part of the report. It knows nothing
of precision, processes, logging or checkpoints. `registry.py` lists the stages.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..codec import SpeechCodec
from .clips import Clip
from .config import Recipe, TrainConfig
from .data import Corpus, HeldOut, SpeechDataset, TrainingData


@dataclasses.dataclass(frozen=True, eq=False)
class StepResult:
    """What one pass makes of one micro-batch.

    Attributes:
        loss: () mean over all that the micro-batch holds; its gradient is what the pass learns by.
        figures: () means over the same, to log.
        weight: how much the micro-batch holds: items where all are equally long, codes where they
            are not. The step's loss, figures and gradient are means by weight over all
            micro-batches of all processes, and so those of one large batch; what has weight 0 does
            not count, even if it is NaN. A tensor on a GPU makes the loop wait for it.
        kept: whatever later passes of the step, or the upkeep after it, want of this one.
    """

    loss: Tensor
    figures: dict[str, Tensor]
    weight: float | Tensor = 1.0
    kept: Any = None


Results = Mapping[str, StepResult]  # of one micro-batch, by pass
NOTHING: Results = MappingProxyType({})
Ways = dict[str, Callable[[HeldOut], Tensor]]  # to make a sound (L,) of a clip, by name
D = TypeVar("D", bound=TrainingData)


class Stage(abc.ABC, Generic[D]):
    """One stage of training, over training data of class `D`.

    Args:
        config: of the run; the stage's recipe is in it.
        backend: whose modules to train: `muomni_fast.reference`, or `muomni_fast`.
        device: to train on.
        required: the products that `requires` names, in eval mode, without gradients. They are not
            among `models`, so nothing broadcasts or saves them.

    Attributes:
        name: of the stage; also the kind and name of its model checkpoint.
        recipe_class: of its recipe.
        recipes: recipes by preset; other presets have `recipe_class()`.
        requires: stages whose products it needs.
        starts_from_data: whether `start` does anything.
        max_grad_norm: what the norm of a pass's gradient is limited to; None for no limit.
        speaks: whether `said` gives anything.
        unplotted: figures that have no curve in the report.
        models: all modules with learned state; the one called `name` is the product.
        optimisers: one per pass, in the order a step runs them.
    """

    name: ClassVar[str]
    recipe_class: ClassVar[type[Recipe]]
    recipes: ClassVar[Mapping[str, Recipe]] = {}
    requires: ClassVar[tuple[str, ...]] = ()
    starts_from_data = False
    max_grad_norm: float | None = None
    speaks: ClassVar[bool] = False
    unplotted: ClassVar[tuple[str, ...]] = ()
    recipe: Recipe
    models: dict[str, nn.Module]
    optimisers: dict[str, torch.optim.Optimizer]

    def __init__(
        self,
        config: TrainConfig,
        backend: ModuleType,
        device: torch.device,
        required: Mapping[str, nn.Module] = MappingProxyType({}),
    ) -> None:
        self.config = config
        self.backend = backend
        self.device = device
        self.required = required
        self.recipe = config.recipe(self.name)
        self.steps, self.batch_size = self.recipe.steps, self.recipe.batch_size
        self.models = self.build()

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """The recipe of a preset."""
        return cls.recipes[name] if name in cls.recipes else cls.recipe_class()

    @classmethod
    def obstacle(cls, clips: Sequence[Clip]) -> str | None:
        """Why nothing can be learned from these clips, or measured on them, or None. Where all
        stages are to run, one that has an obstacle is left out."""
        return None

    @classmethod
    @abc.abstractmethod
    def model_class(cls, backend: ModuleType) -> type[nn.Module]:
        """The product's class; the product has its constructor's arguments as `config`."""

    @abc.abstractmethod
    def build(self) -> dict[str, nn.Module]:
        """The models, on `device`."""

    # Data

    @abc.abstractmethod
    def dataset(self, corpus: Corpus) -> D:
        """The training data."""

    @abc.abstractmethod
    def split(self, batch: Any, n: int) -> list[Any]:
        """n micro-batches of a batch of `dataset`, on `device`, of about equally many items."""

    def skipped(self, batch: Any) -> Sequence[int]:
        """Clips that were left out while the batch was read."""
        return ()

    # Learning

    def start(self, data: D) -> None:
        """Set weights from data, where `starts_from_data`; in the first process only."""
        raise NotImplementedError

    @abc.abstractmethod
    def begin(self) -> None:
        """Make the optimisers: once weights are in place, before the first step or a restore."""

    def passes(self, step: int) -> list[str]:
        """The passes of this step, in order."""
        return list(self.optimisers)

    def learning_rate_factor(self, step: int, epoch: int) -> float:
        """What the optimisers' own rates are multiplied by."""
        return cosine(step, self.steps)

    @abc.abstractmethod
    def loss(self, pass_name: str, batch: Any, earlier: Results = NOTHING) -> StepResult:
        """One pass over one micro-batch; `earlier`: the results of the step's passes before."""

    def after_step(self, results: Sequence[Results]) -> dict[str, float]:
        """Upkeep after a step, from the results of its micro-batches; figures to log."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """What resuming needs beyond models and optimisers."""
        return {}

    def checkpoint_extra(self) -> dict[str, Any]:
        """What the product's checkpoint says besides, in `extra`."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` gave."""
        assert not state

    @property
    def product(self) -> nn.Module:
        """The model this stage is for."""
        return self.models[self.name]

    # Measuring and reporting

    @abc.abstractmethod
    def validate(self, clips: Sequence[HeldOut]) -> dict[str, float]:
        """Held-out figures."""

    def comparisons(
        self, data: D, clips: Sequence[HeldOut], notes: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Held-out figures of what the product is to be compared with; joins its results.

        Args:
            data: the training data.
            clips: held out.
            notes: figures before training, "random" and maybe "start" (from data) or "given" (the
                weights that it began with).
        """
        return {}

    @classmethod
    def heard(cls, config: TrainConfig, products: Mapping[str, Any]) -> Ways:
        """How the stage's product makes sounds of held-out clips, by names that no other stage
        gives; asked for once, so what all clips need is loaded here.

        Args:
            config: of the run.
            products: of all finished stages.
        """
        return {}

    @classmethod
    def said(
        cls, clip: HeldOut, config: TrainConfig, products: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Sounds (L,) of a length of their own that the stage's product makes of what is known of a
        clip besides its sound, by name; where `speaks`, also of a clip of the training data."""
        return {}

    @classmethod
    @abc.abstractmethod
    def report(cls, results: dict[str, Any]) -> list[str]:
        """Lines of the closing table, from the stage's results."""


Batch = dict[str, Tensor]  # of speech: "audio" (B, L), "mel" (B, n_mels, T)


class SpeechStage(Stage[SpeechDataset]):
    """A stage over crops of speech.

    Attributes:
        by_length: whether a clip counts by its length, or once an epoch.
        through: what becomes of a clip's log-mel before "mel" is cut from it; None is nothing.
    """

    by_length = False
    through: Callable[[Tensor], Tensor] | None = None

    def dataset(self, corpus: Corpus) -> SpeechDataset:
        return SpeechDataset(
            corpus.clips,
            self.config.mel,
            self.config.segment_samples,
            self.batch_size,
            self.config.seed,
            corpus.rank,
            corpus.world_size,
            self.by_length,
            corpus.cache_bytes,
            self.through,
        )

    def split(self, batch: dict[str, Any], n: int) -> list[Batch]:
        chunks = {name: batch[name].to(self.device).chunk(n) for name in ("audio", "mel")}
        return [{name: chunks[name][i] for name in chunks} for i in range(n)]

    def skipped(self, batch: dict[str, Any]) -> Sequence[int]:
        return batch["skipped"]


def codec_way(codec: SpeechCodec) -> Callable[[HeldOut], Tensor]:
    """Clips as they sound encoded and decoded."""
    return lambda clip: codec.decode(codec.encode(clip.audio[None]))[0]


def cosine(step: int, steps: int) -> float:
    """Half a cosine from 1 at step 0 to 0 at `steps`."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
