"""Signs of what enters the leaky_relus of a generator, so that float64 can be given float32's."""

import contextlib
from collections.abc import Iterable, Iterator

import pytest
import torch
from torch import Tensor, nn

from muomni_fast.vocoder.shapes import Blocks, Network


@contextlib.contextmanager
def signs_seen() -> Iterator[list[Tensor]]:
    """Where inputs of PyTorch's leaky_relu are positive, call by call."""
    signs, leaky_relu = [], nn.functional.leaky_relu
    with pytest.MonkeyPatch.context() as patch:
        noting = lambda x, slope: signs.append(x.detach() > 0) or leaky_relu(x, slope)
        patch.setattr(nn.functional, "leaky_relu", noting)
        yield signs


@contextlib.contextmanager
def signs_given(signs: Iterable[Tensor]) -> Iterator[None]:
    """PyTorch's leaky_relu as if its inputs were positive there, call by call."""
    given = iter(signs)
    with pytest.MonkeyPatch.context() as patch:
        as_given = lambda x, slope: torch.where(next(given), x, slope * x)
        patch.setattr(nn.functional, "leaky_relu", as_given)
        yield
        assert next(given, None) is None


def signs_of(kept: list[Tensor], shape: Network, backend: str) -> Iterator[Tensor]:
    """The same of what a forward keeps for its backward."""
    turned = (lambda t: t.transpose(1, 2)) if backend == "triton" else (lambda t: t)
    last, *rest = kept
    per_stage = len(rest) // len(shape.factors)
    for stage in range(len(shape.factors)):
        yield turned(last) > 0
        first, *inner, last = rest[stage * per_stage : (stage + 1) * per_stage]
        steps = iter(branch_by_branch(inner, shape.blocks) if backend == "triton" else inner)
        for dilations in shape.blocks.dilations:
            for p in range(len(dilations)):
                yield (turned(first) if p == 0 else next(steps)) > 0
                if shape.blocks.paired:
                    yield next(steps) > 0
    yield turned(last) > 0


def branch_by_branch(kept: list[Tensor], blocks: Blocks) -> list[Tensor]:
    """What the kernels keep, in the layout and order of `torch_vocoder`."""
    steps = [step.transpose(2, 3) for step in kept]  # (G, B, C, T) each
    return [step[g] for g in range(len(blocks.taps)) for step in steps]
