"""Tiles of the convolution kernels, and whether a level runs in one launch; the tables are in
`tuned/`.

The order in which an output is summed depends on `block_k` and the precision alone, which depend on
channels and dtype alone: a result is the same bits in any batch, at any length, by step or strip.
"""

import dataclasses
import functools

from torch import Tensor

from .. import launch
from ..launch import ceil_div, interpreted, multiprocessors, power_of_two
from ..tables import in_use


@dataclasses.dataclass(frozen=True)
class ConvConfig:
    """Tile of a convolution.

    Attributes:
        block_t, block_n: rows and columns of a program.
        block_k: taps x channels multiplied at once.
        num_warps, num_stages: as Triton takes them.
    """

    block_t: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def tile(self, precision: str) -> tuple[int | str, ...]:
        """What the kernels take as TILE."""
        return self.block_t, self.block_n, self.block_k, precision, self.num_stages

    @functools.cache  # noqa: B019  # of a table's few rows
    def fitted(self, n: int, channels: int) -> "ConvConfig":
        """Without columns or channels that are not there."""
        block_k = self.block_k
        if channels & (channels - 1):  # taps are folded where channels divide the block
            block_k = min(block_k, power_of_two(channels))
        return dataclasses.replace(
            self, block_n=min(self.block_n, power_of_two(n)), block_k=block_k
        )


# (architecture, bytes of an element, smallest power of two >= columns, at most 128) -> config
CONV = in_use("conv", ConvConfig, "bytes", "columns")
# The same where that would be fewer programs than multiprocessors.
SMALL_GRID = in_use("conv, small grid", ConvConfig, "bytes", "columns")
# Of weight gradients. `block_n` is columns of the gradient that arrives, `block_t` the rows that
# are summed over. sm_90's warp groups need float32 operands transposed; asynchronous copies would
# do that four bytes at a time, so there these have `num_stages` 1: copies go through registers.
GRAD = in_use("weight_grad", ConvConfig, "bytes")
GRAD_PROGRAMS = 512  # into which a weight gradient's rows are split, about
# Interpreted, every operation of a program costs the same at any size.
INTERPRETER_TILE = ConvConfig(256, 64, 64, 4, 1)
WIDEST = 128


def conv_config(n: int, channels: int, like: Tensor, rows: int) -> ConvConfig:
    """The row of `CONV`, or of `SMALL_GRID`, for a convolution from `channels` to `n` columns.

    Args:
        n, channels: of the convolution.
        like: a tensor of its dtype and device.
        rows: it writes, of all items and branches.
    """
    if interpreted(like):
        return INTERPRETER_TILE.fitted(n, channels)
    width = min(power_of_two(n), WIDEST)
    key = launch.architecture(like.device), like.element_size(), width
    config = CONV[key].fitted(n, channels)
    if key in SMALL_GRID:
        programs = ceil_div(rows, config.block_t) * ceil_div(n, config.block_n)
        if programs < multiprocessors(like.device):
            return SMALL_GRID[key].fitted(n, channels)
    return config


def grad_config(n: int, channels: int, like: Tensor) -> ConvConfig:
    """The row of `GRAD` for the weights of a convolution from `channels` to `n` columns."""
    config = INTERPRETER_TILE
    if not interpreted(like):
        config = GRAD[launch.architecture(like.device), like.element_size()]
    return dataclasses.replace(config, block_n=min(config.block_n, power_of_two(n)))


@dataclasses.dataclass(frozen=True)
class StripConfig:
    """How a level runs in one launch.

    Attributes:
        conv: tile of its convolutions.
        programs: at most; what the device holds at once.
        length: rows of a strip.
    """

    conv: ConvConfig
    programs: int
    length: int


# (architecture, bytes of an element, channels) -> tile, most programs per multiprocessor. Levels
# that are not here, whose strips would be short (scratch is limited) or too few to fill the device
# take one launch per step.
_STRIP_KEYS = "bytes", "channels", "programs_per_multiprocessor"
STRIP = {
    key[:3]: (config, key[3]) for key, config in in_use("strip", ConvConfig, *_STRIP_KEYS).items()
}
MOST_SCRATCH = 30 << 20  # bytes: stays in the last cache
LONGEST_STRIP = 1024


def reaches(
    taps: tuple[int, ...], dilations: tuple[tuple[int, ...], ...], paired: bool
) -> tuple[tuple[int, ...], ...]:
    """Rows a side that the steps after each dilation's still read, of each branch."""
    found = []
    for size, branch in zip(taps, dilations, strict=True):
        each = [(size - 1) // 2 * (d + paired) for d in branch]
        found.append(tuple(sum(each[i + 1 :]) for i in range(len(each))))
    return tuple(found)


def strip_halo(taps: tuple[int, ...], dilations: tuple[tuple[int, ...], ...], paired: bool) -> int:
    """Rows a side that a strip needs besides its own."""
    pairs = zip(taps, dilations, strict=True)
    return max(sum((size - 1) // 2 * (d + paired) for d in branch) for size, branch in pairs)


def strip_tile(x: Tensor) -> tuple[ConvConfig, int] | None:
    """The row of `STRIP` for the level of `x`, (B, T, C), if there is one."""
    return STRIP.get((launch.architecture(x.device), x.element_size(), x.shape[2]))


def strip_config(
    x: Tensor, taps: tuple[int, ...], dilations: tuple[tuple[int, ...], ...], paired: bool
) -> StripConfig | None:
    """How the level of `x`, (B, T, C), runs in one launch; None if it should not."""
    found = strip_tile(x)
    if found is None or interpreted(x):
        return None
    conv, most = found
    halo = strip_halo(taps, dilations, paired)
    for per_multiprocessor in range(most, 0, -1):
        programs = per_multiprocessor * multiprocessors(x.device)
        strip = strip_of(x, taps, dilations, paired, conv, programs, LONGEST_STRIP)
        busy = x.shape[0] * x.shape[1] >= programs * strip.length
        if busy and strip.programs == programs and strip.length >= 4 * halo:
            return strip
    return None


def strip_of(
    x: Tensor,
    taps: tuple[int, ...],
    dilations: tuple[tuple[int, ...], ...],
    paired: bool,
    conv: ConvConfig,
    programs: int,
    longest: int,
) -> StripConfig:
    """The longest strips, of whole tiles, that `programs` hold in scratch; where it does not hold
    a tile and its halo for each of them, strips of one tile for fewer."""
    channels = x.shape[2]
    row = 2 * len(taps) * channels * x.element_size()  # of scratch
    halo = 2 * strip_halo(taps, dilations, paired)
    length = min(longest, MOST_SCRATCH // (programs * row) - halo)
    length = max(length - length % conv.block_t, conv.block_t)
    programs = max(1, min(programs, MOST_SCRATCH // (row * (length + halo))))
    return StripConfig(conv.fitted(channels, channels), programs, length)


def scratch_bytes(
    x: Tensor,
    taps: tuple[int, ...],
    dilations: tuple[tuple[int, ...], ...],
    paired: bool,
    strip: StripConfig,
) -> int:
    """What the programs of a level in one launch keep between its steps: of each branch two
    slices of a strip and its halo."""
    rows = strip.length + 2 * strip_halo(taps, dilations, paired)
    return strip.programs * 2 * len(taps) * rows * x.shape[2] * x.element_size()
