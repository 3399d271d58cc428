"""HiFi-GAN's residual blocks, and their mean: multi-receptive field fusion (section 2.2)."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import accept_wrapped_names, require_channels
from ..values import (
    MOST_CHANNELS,
    require_choice,
    require_int,
    require_ints,
    require_number,
    require_parameters,
)
from .checks import block_weights, checked_dilations
from .weight_norm import accept_weights

LEAKY_SLOPE = 0.1  # as published


class Sloped:
    """What has one slope for its leaky_relus."""

    # As text: `torch.compile` would make a number an input of its graph.
    _slope = str(LEAKY_SLOPE)

    @property
    def leaky_slope(self) -> float:
        """Of every leaky_relu."""
        return float(self._slope)

    def _set_slope(self, leaky_slope: float) -> None:
        slope = require_number("leaky_slope", leaky_slope)
        if not 0 <= slope < 1:
            raise ValueError(f"leaky_slope: expected 0 <= leaky_slope < 1, got {leaky_slope}")
        self._slope = str(slope)


def up_paddings(kernel_size: int, rate: int) -> tuple[int, int]:
    """padding and output_padding of a transposed convolution that lengthens exactly `rate` times.

    Where kernel - rate is odd, one row more is cut off before the signal than after it.
    """
    excess = kernel_size - rate
    return (excess + 1) // 2, excess % 2


def _conv(channels: int, kernel_size: int, dilation: int) -> nn.Conv1d:
    padding = (kernel_size - 1) // 2 * dilation
    return nn.Conv1d(channels, channels, kernel_size, padding=padding, dilation=dilation)


class ResBlock(Sloped, nn.Module):
    """Residual block of one kernel size (HiFi-GAN section 2.2).

    Type "1": for each dilation d, x += conv_1(lrelu(conv_d(lrelu(x)))). Type "2": x +=
    conv_d(lrelu(x)).

    Args:
        channels: of input and output.
        kernel_size: odd.
        dilations: one per convolution (pair).
        resblock: "1" or "2".
        leaky_slope: of every leaky_relu, 0 <= leaky_slope < 1.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        dilations: Sequence[int],
        resblock: str = "1",
        leaky_slope: float = LEAKY_SLOPE,
    ) -> None:
        super().__init__()
        channels = require_int("channels", channels, 1, MOST_CHANNELS)
        kernel_size = require_int("kernel_size", kernel_size, 1, MOST_CHANNELS)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        dilations = require_ints("dilations", dilations, 1, MOST_CHANNELS)
        self.channels = channels
        self.kernel_size = kernel_size
        self.dilations = dilations
        self.resblock = require_choice("resblock", resblock, "1", "2")
        self._set_slope(leaky_slope)
        require_parameters(
            f"channels = {channels}, kernel_size = {kernel_size}, {len(dilations)} dilations",
            block_weights(channels, kernel_size, dilations, resblock),
        )
        dilated = nn.ModuleList(_conv(channels, kernel_size, d) for d in dilations)
        if resblock == "1":
            self.convs1 = dilated
            self.convs2 = nn.ModuleList(_conv(channels, kernel_size, 1) for _ in dilations)
        else:
            self.convs = dilated
        accept_weights(self)

    @property
    def reach(self) -> int:
        """Rows a side that a row of the result depends on."""
        second = self.resblock == "1"
        return sum((self.kernel_size - 1) // 2 * (d + second) for d in self.dilations)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) -> (B, channels, T).

        Raises:
            TypeError: `x` is not floating point, or is float8.
            ValueError: the shape is not (B, channels, T >= 1).
        """
        require_channels("x", x, self.channels)
        if self.resblock == "2":
            for conv in self.convs:
                x = x + conv(F.leaky_relu(x, self.leaky_slope))
            return x
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            inner = dilated(F.leaky_relu(x, self.leaky_slope))
            x = x + plain(F.leaky_relu(inner, self.leaky_slope))
        return x


def mrf(x: Tensor, resblocks: Sequence[nn.Module]) -> Tensor:
    """Multi-receptive field fusion: the mean over residual blocks of one level, (B, C, T)."""
    return sum(block(x) for block in resblocks) / len(resblocks)


class MRF(nn.Module):
    """Multi-receptive field fusion (HiFi-GAN section 2.2): the mean of ResBlocks of several sizes.

    Args:
        channels: of input and output.
        kernel_sizes: one residual block each, odd.
        dilation_sizes: the dilations of each block.
        resblock: "1" or "2".
        leaky_slope: of every leaky_relu, 0 <= leaky_slope < 1.

    Raises:
        TypeError, ValueError: as `ResBlock`; or lengths do not match.
    """

    resblock_class: ClassVar[type[ResBlock]] = ResBlock

    def __init__(
        self,
        channels: int,
        kernel_sizes: Sequence[int],
        dilation_sizes: Sequence[Sequence[int]],
        resblock: str = "1",
        leaky_slope: float = LEAKY_SLOPE,
    ) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            self.resblock_class(channels, kernel_size, dilations, resblock, leaky_slope)
            for kernel_size, dilations in checked_dilations(kernel_sizes, dilation_sizes)
        )
        self.register_load_state_dict_pre_hook(accept_wrapped_names)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) -> (B, channels, T)."""
        return mrf(x, list(self.resblocks))
