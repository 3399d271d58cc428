"""The shape of a HiFi-GAN generator, and what belongs to each of its layers.

Shapes are values that are equal where their fields are. What follows from the fields is computed
once, and stays with the shape.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Self

from ..reference.vocoder.blocks import LEAKY_SLOPE, up_paddings

# Divides a sequence into parts: a function in C, as it is called for every layer.
Divide = Callable[[Sequence[Any]], Sequence[Sequence[Any]]]


def _divide(sizes: Sequence[int]) -> Divide:
    ends = list(itertools.accumulate(sizes))
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return operator.itemgetter(*parts) if len(parts) > 1 else lambda items: [items]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The residual blocks of one upsampling level (HiFi-GAN section 2.2).

    Attributes:
        kind: "1" (a second convolution follows each dilated one) or "2".
        taps: kernel size of each block.
        dilations: of each block.
        slope: of every leaky_relu.
    """

    kind: str
    taps: tuple[int, ...]
    dilations: tuple[tuple[int, ...], ...]
    slope: float = LEAKY_SLOPE

    @functools.cached_property
    def paired(self) -> bool:
        """Whether blocks are of type "1"."""
        return self.kind == "1"

    @functools.cached_property
    def per_dilation(self) -> int:
        """Convolutions for each dilation."""
        return 2 if self.paired else 1

    @functools.cached_property
    def reach(self) -> int:
        """Rows a side that a row of the result depends on."""
        pairs = zip(self.taps, self.dilations, strict=True)
        return max(sum((k - 1) // 2 * (d + self.paired) for d in branch) for k, branch in pairs)

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Weights and biases of each block."""
        return [2 * self.per_dilation * len(branch) for branch in self.dilations]

    @functools.cached_property
    def size(self) -> int:
        """Weights and biases of all blocks."""
        return sum(self.sizes)

    @functools.cached_property
    def steps(self) -> list[tuple[int, ...]]:
        """The dilation of each block in every step, which is one convolution of every block.
        Blocks that differ in depth have no steps in common: see `even`."""
        found = []
        for dilations in zip(*self.dilations, strict=True):
            found.append(dilations)
            if self.paired:
                found.append((1,) * len(self.taps))
        return found

    @functools.cached_property
    def even(self) -> list["Blocks"]:
        """Blocks that take their steps together: all of them, or, where they differ in their
        number of dilations, each by itself."""
        if len({len(branch) for branch in self.dilations}) == 1:
            return [self]
        pairs = zip(self.taps, self.dilations, strict=True)
        return [Blocks(self.kind, (k,), (branch,), self.slope) for k, branch in pairs]

    @functools.cached_property
    def divided(self) -> Divide:
        """Something for each weight and bias of all blocks, in turn -> of each block."""
        return _divide(self.sizes)

    @property
    def spec(self) -> str:
        """A string for an operator's argument: kind, slope, then taps and dilations of each
        block."""
        pairs = zip(self.taps, self.dilations, strict=True)
        branches = (f"{k}:{','.join(map(str, d))}" for k, d in pairs)
        return "|".join([self.kind, str(self.slope), *branches])

    @classmethod
    @functools.lru_cache
    def parse(cls, spec: str) -> Self:
        """The inverse of `spec`."""
        kind, slope, *branches = spec.split("|")
        taps, dilations = zip(*(branch.split(":") for branch in branches), strict=True)
        return cls(
            kind,
            tuple(map(int, taps)),
            tuple(tuple(map(int, branch.split(","))) for branch in dilations),
            float(slope),
        )


@dataclasses.dataclass(frozen=True)
class Up:
    """The transposed convolution of an upsampling level, and the leaky_relu before it.

    Attributes:
        factor: by how much it lengthens the signal.
        kernel: its kernel size.
        slope: of the leaky_relu.
    """

    factor: int
    kernel: int
    slope: float = LEAKY_SLOPE

    @functools.cached_property
    def paddings(self) -> tuple[int, int]:
        """Padding, which is the rows cut off before the signal, and output_padding."""
        return up_paddings(self.kernel, self.factor)


@dataclasses.dataclass(frozen=True)
class Network:
    """The shape of a generator.

    Attributes:
        factors, kernels: of the transposed convolution of each upsampling level: by how much it
            lengthens the signal, and its kernel size.
        blocks: of every level; their slope is that of every level's first leaky_relu too.
        final: what follows the last convolution: "tanh", "clamp" or None.
        last_bias: whether that convolution has a bias.
        addends: where something is added: 0 after the first convolution, i after the transposed
            one of level i, counted from 1.
    """

    factors: tuple[int, ...]
    kernels: tuple[int, ...]
    blocks: Blocks
    final: str | None = "tanh"
    last_bias: bool = True
    addends: tuple[int, ...] = ()

    @functools.cached_property
    def hop(self) -> int:
        """Samples per frame."""
        return math.prod(self.factors)

    @functools.cached_property
    def ups(self) -> list[Up]:
        """Of every level."""
        pairs = zip(self.factors, self.kernels, strict=True)
        return [Up(factor, kernel, self.blocks.slope) for factor, kernel in pairs]

    @functools.cached_property
    def last_size(self) -> int:
        """Weights and biases of the last convolution."""
        return 2 if self.last_bias else 1

    @functools.cached_property
    def divided(self) -> Divide:
        """Something for each weight and bias, in turn -> of pre, of every level's up and blocks,
        and of post; addends after them are left out."""
        return _divide([2, *[2, self.blocks.size] * len(self.factors), self.last_size])

    @property
    def spec(self) -> str:
        """A string for an operator's argument: factors, kernel sizes, the blocks' own, what is
        final, whether there is a last bias, and where addends are."""
        numbers = (",".join(map(str, part)) for part in (self.factors, self.kernels))
        bias = "bias" if self.last_bias else ""
        spec = ";".join([*numbers, self.blocks.spec, self.final or "", bias, ""])
        return with_addends(spec, self.addends)

    @classmethod
    @functools.lru_cache
    def parse(cls, spec: str) -> Self:
        """The inverse of `spec`."""
        factors, kernels, blocks, final, bias, addends = spec.split(";")
        numbers = lambda part: tuple(map(int, part.split(","))) if part else ()
        shape = numbers(factors), numbers(kernels), Blocks.parse(blocks)
        return cls(*shape, final or None, bool(bias), numbers(addends))


def with_addends(spec: str, places: Sequence[int]) -> str:
    """The `Network.spec` of a generator to which something is added, from that of it alone."""
    return spec + ",".join(map(str, places))


@dataclasses.dataclass
class Layers:
    """Something for every layer of a generator: its weights and bias, or their gradients."""

    pre: Any
    ups: list[Any]
    mrfs: list[Any]
    post: Any

    @classmethod
    def of(cls, parts: Sequence[Any]) -> Self:
        """From pre, every level's up and blocks, and post, as `Network.divided` gives them."""
        return cls(parts[0], list(parts[1:-1:2]), list(parts[2:-1:2]), parts[-1])

    def flat(self) -> list[Any]:
        """The inverse of `of`."""
        levels = itertools.chain(
            *((*up, *mrf) for up, mrf in zip(self.ups, self.mrfs, strict=True))
        )
        return [*self.pre, *levels, *self.post]
