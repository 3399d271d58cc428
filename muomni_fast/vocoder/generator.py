"""What a HiFi-GAN generator computes, forward and backward, whatever runs its layers.

Backends (`triton_backend`, `torch_inference`, `torch_backend`) have the same functions, `pre`,
`up`, `mrf`, `post` and, but for the second, the gradient of each, on activations in a layout of
their own. Only the kernels take a batch's lengths. Here is what calls them in order.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Self, TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The residual blocks of one stage (HiFi-GAN section 2.2).

    Attributes:
        kind: "1" (a second convolution follows each dilated one) or "2".
        taps: kernel size of each block.
        dilations: of each block.
    """

    kind: str
    taps: tuple[int, ...]
    dilations: tuple[tuple[int, ...], ...]

    @property
    def paired(self) -> bool:
        """Whether blocks are of type "1"."""
        return self.kind == "1"

    @property
    def per_dilation(self) -> int:
        """Convolutions for each dilation."""
        return 2 if self.paired else 1

    @property
    def depth(self) -> int:
        """Dilations of each block.

        Raises:
            ValueError: blocks differ.
        """
        (depth,) = {len(branch) for branch in self.dilations}
        return depth

    @property
    def ragged(self) -> bool:
        """Whether blocks differ in their number of dilations."""
        return len({len(branch) for branch in self.dilations}) > 1

    @property
    def reach(self) -> int:
        """Rows a side that a row of the result depends on."""
        pairs = zip(self.taps, self.dilations, strict=True)
        return max(sum((k - 1) // 2 * (d + self.paired) for d in branch) for k, branch in pairs)

    @property
    def sizes(self) -> list[int]:
        """Weights and biases of each block."""
        return [2 * self.per_dilation * len(branch) for branch in self.dilations]

    def single(self, branch: int) -> "Blocks":
        """One block by itself."""
        return Blocks(self.kind, (self.taps[branch],), (self.dilations[branch],))

    def divided(self, items: Sequence[T]) -> list[Sequence[T]]:
        """Something for each weight and bias of all blocks, in turn -> of each block."""
        ends = list(itertools.accumulate(self.sizes))
        return [items[end - size : end] for end, size in zip(ends, self.sizes, strict=True)]

    @property
    def spec(self) -> str:
        """A string for an operator's argument: kind, then taps and dilations of each block."""
        pairs = zip(self.taps, self.dilations, strict=True)
        return "|".join([self.kind, *(f"{k}:{','.join(map(str, d))}" for k, d in pairs)])

    @classmethod
    @functools.lru_cache
    def parse(cls, spec: str) -> Self:
        """The inverse of `spec`."""
        kind, *branches = spec.split("|")
        taps, dilations = zip(*(branch.split(":") for branch in branches), strict=True)
        return cls(
            kind,
            tuple(map(int, taps)),
            tuple(tuple(map(int, branch.split(","))) for branch in dilations),
        )


@dataclasses.dataclass(frozen=True)
class Network:
    """The shape of a generator.

    Attributes:
        rates, kernels: of the transposed convolutions.
        blocks: of every stage.
    """

    rates: tuple[int, ...]
    kernels: tuple[int, ...]
    blocks: Blocks

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.rates)


@dataclasses.dataclass
class Layers:
    """Something for every layer of a generator: its weights and bias, or their gradients."""

    pre: Any
    ups: list[Any]
    mrfs: list[Any]
    post: Any

    @classmethod
    def of(cls, tensors: Sequence[Any], stages: int, blocks: int) -> Self:
        """Divide a flat list: pre, then for each stage up and blocks, then post; two for each
        convolution, `blocks` for each stage's blocks."""
        ups, mrfs = [], []
        for start in range(2, 2 + stages * (2 + blocks), 2 + blocks):
            ups.append(tensors[start : start + 2])
            mrfs.append(tensors[start + 2 : start + 2 + blocks])
        return cls(tensors[:2], ups, mrfs, tensors[-2:])

    def flat(self) -> list[Any]:
        """The inverse of `of`."""
        stages = itertools.chain(
            *((*up, *mrf) for up, mrf in zip(self.ups, self.mrfs, strict=True))
        )
        return [*self.pre, *stages, *self.post]


def forward(
    run: ModuleType,
    mel: Tensor,
    layers: Layers,
    network: Network,
    lengths: Tensor | None,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Audio of a mel, and what its gradient needs if `keep`.

    Args:
        run: the backend.
        mel: (B, n_mels, T).
        layers: what the backend's `layers` gives.
        network: the shape.
        lengths: (B,) frames of each item, for the kernels, or None.
        keep: return what lies between the layers: the output of `pre`; for each stage the output
            of `up`, what `mrf` keeps and its output.

    Returns:
        (B, T * hop), and the list.
    """
    ends = _ends(lengths)
    x, rate = run.pre(mel, layers.pre, *ends(1)), 1
    kept = [x]
    for stage, factor in enumerate(network.rates):
        u = run.up(x, layers.ups[stage], factor, network.kernels[stage], *ends(rate))
        rate *= factor
        x, inner = run.mrf(u, layers.mrfs[stage], network.blocks, keep, *ends(rate))
        kept += [u, *inner, x]
    return run.post(x, layers.post, *ends(rate)), kept if keep else []


def _ends(lengths: Tensor | None) -> Callable[[int], tuple[Any, ...]]:
    """What tells a layer where items end, in rows of so many to a frame."""
    return lambda rate: () if lengths is None else (lengths, rate)


def backward(
    run: ModuleType,
    grad: Tensor,
    audio: Tensor,
    mel: Tensor,
    kept: Sequence[Tensor],
    tensors: Sequence[Tensor],
    network: Network,
    lengths: Tensor | None,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the mel and of every weight and bias, None where not needed.

    Args:
        run, mel, network, lengths: as in `forward`.
        grad, audio: (B, T * hop), of its result and that itself.
        kept: what it kept.
        tensors: weights and biases as torch has them, in the order of `Layers.of`.
        needs: of the mel, then of each tensor.
    """
    stages, size = len(network.rates), sum(network.blocks.sizes)
    weights = Layers.of(tensors, stages, size)
    need = Layers.of(needs[1:], stages, size)
    found = Layers(*([None, None], [[None, None]] * stages, [[None] * size] * stages, [None] * 2))
    per_stage = (len(kept) - 1) // stages
    ends, rate = _ends(lengths), network.hop
    d, found.post = run.post_grad(grad, audio, kept[-1], weights.post, need.post, *ends(rate))
    for stage in reversed(range(stages)):
        if not any(needs[: 1 + 2 + (stage + 1) * (2 + size)]):
            break
        first = 1 + stage * per_stage
        x, u, inner = kept[first - 1], kept[first], kept[first + 1 : first + per_stage - 1]
        d, found.mrfs[stage] = run.mrf_grad(
            d, u, inner, weights.mrfs[stage], network.blocks, need.mrfs[stage], *ends(rate)
        )
        factor = network.rates[stage]
        rate //= factor
        d, found.ups[stage] = run.up_grad(
            d, x, weights.ups[stage], factor, need.ups[stage], *ends(rate)
        )
    else:
        if any(needs[:3]):
            d_mel, found.pre = run.pre_grad(d, mel, weights.pre, needs[0], need.pre, *ends(1))
            return [d_mel, *found.flat()]
    return [None, *found.flat()]


def fake_kept(run: ModuleType, mel: Tensor, channels: int, network: Network) -> list[Tensor]:
    """Tensors like those `forward` keeps; `channels` are those after `pre`."""
    rows = mel.shape[2]
    kept = [run.fake(mel, channels, rows)]
    for factor in network.rates:
        channels, rows = channels // 2, rows * factor
        inner = run.fake_kept(mel, channels, rows, network.blocks)
        kept += [run.fake(mel, channels, rows), *inner, run.fake(mel, channels, rows)]
    return kept
