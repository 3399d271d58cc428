"""Means by weight over micro-batches and processes."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import TrainingError
from . import distributed

Weighted = tuple[Tensor, float]  # () a mean over a micro-batch, and the latter's weight


def weight_of(value: float | Tensor, where: str) -> float:
    """A micro-batch's weight as a number.

    Raises:
        TrainingError: it is negative or not finite; says `where`.
    """
    weight = float(value)
    if not 0 <= weight < math.inf:
        raise TrainingError(f"{where}: weight: expected a finite number >= 0, got {weight}")
    return weight


def sums(weighted: Sequence[Weighted]) -> Tensor:
    """Sum of weight * value, and sum of weights, over this process's micro-batches: (2,) float64.

    In float64, so that the mean of a single float32 value is that value. A value of no weight does
    not count, whatever it is: a mean over nothing is NaN.
    """
    values = torch.stack([value for value, _ in weighted]).double()
    weights = values.new_tensor([weight for _, weight in weighted])
    return torch.stack([torch.where(weights > 0, values * weights, 0).sum(), weights.sum()])


def means(figures: Mapping[str, Sequence[Weighted]]) -> dict[str, float]:
    """Mean of each figure over the micro-batches of all processes."""
    total = distributed.total(torch.stack([sums(weighted) for weighted in figures.values()]))
    return dict(zip(figures, (total[:, 0] / total[:, 1]).tolist(), strict=True))
