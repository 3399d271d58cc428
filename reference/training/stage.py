"""The stages of training: what each one learns, for the one loop of `trainer.py` to run.

A stage is a small object: its models, an optimiser for each pass of a step, the loss of a pass, and
how it is validated. It knows nothing of accumulation, precision, processes, logging or checkpoints.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class StepResult:
    """What one pass makes of one micro-batch.

    Attributes:
        loss: () mean over all that the micro-batch holds; its gradient is what the pass learns by.
        figures: () means over the same, to log.
        weight: how much the micro-batch holds, above zero: items where all are equally long, tokens
            where they are not. The step's loss, figures and gradient are means by weight over all
            micro-batches of all processes, and so those of one large batch.
        kept: whatever later passes of the step, or the upkeep after it, want of this one.
    """

    loss: Tensor
    figures: dict[str, Tensor]
    weight: float | Tensor = 1.0
    kept: Any = None


Results = Mapping[str, StepResult]  # of one micro-batch, by pass
NOTHING: Results = MappingProxyType({})


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
    def loss(self, pass_name: str, batch: Batch, earlier: Results = NOTHING) -> StepResult:
        """One pass over one (micro-)batch; `earlier`: the results of the step's passes before."""

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

    def after_step(self, results: Sequence[Results]) -> dict[str, float]:
        """Upkeep after a step, from the results of its micro-batches; figures to log."""
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
