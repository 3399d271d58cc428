"""The layers of a HiFi-GAN generator without Triton and without gradients: what generates on a CPU.

Activations are channels-last, (B, C, 1, T) in memory as (B, T, C): oneDNN's convolutions then read
and write them as they are, with one fast kernel for every dilation, instead of reordering them
before and after each. A transposed convolution is an ordinary one to factor x C_out channels, whose
rows already are the upsampled signal. A level runs in strips short enough that their memory is
reused: allocators return larger pieces to the system every time, and page faults then take most of
the time (docs/benchmarks.md).
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..reference.vocoder.hifigan import LAST_LEAKY_SLOPE
from .backends import Ends, Pair
from .shapes import Blocks, Layers, Network, Up
from .torch_backend import FINISH

CHANNELS_LAST = torch.channels_last
# Values of an activation at once, 4 MB of float32; 2^19 to 2^21 are about equal.
STRIP = 1 << 20
# Products that are added up one after another at most. With AVX-512 oneDNN sums channels-last
# operands in one sequence, which beyond this costs more than 3 dB of what torch's own layout gives.
TERMS = 512

TAKES_ENDS = False  # `ends` is always None here


def layers(tensors: Sequence[Tensor], network: Network) -> Layers:
    """Weights and biases as torch has them -> as the functions here take them."""
    pre, *levels, post = network.divided(tensors)
    ups = [_pack_up(*pair) for pair in zip(levels[::2], network.factors, strict=True)]
    return Layers(_pack(pre), ups, [_pack(blocks) for blocks in levels[1::2]], _pack(post))


def pack(tensors: Sequence[Tensor], network: Network) -> list[Tensor]:
    """What `prepare` keeps, and `unpacked` takes."""
    return layers(tensors, network).flat()


def unpacked(packed: Sequence[Tensor], network: Network) -> Layers:
    """What `pack` gave -> as the functions here take them."""
    pre, *levels, post = network.divided(packed)
    return Layers(pre, levels[::2], levels[1::2], post)


def pack_blocks(tensors: Sequence[Tensor], blocks: Blocks) -> list[Tensor]:
    """Weights and biases of one level's blocks as torch has them -> as `mrf` takes them."""
    return _pack(tensors)


def _pack(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Weights (N, C, taps), each followed by a bias -> (N, C, 1, taps) channels-last."""
    return [
        t[:, :, None].contiguous(memory_format=CHANNELS_LAST) if t.ndim == 3 else t.contiguous()
        for t in tensors
    ]


def _pack_up(layer: Pair, factor: int) -> list[Tensor]:
    """(C, C_out, kernel) -> (factor * C_out, C, 1, taps), phases first, channels-last."""
    weight, bias = layer
    channels, width, kernel = weight.shape
    taps = -(-kernel // factor)
    padded = F.pad(weight, (0, taps * factor - kernel)).view(channels, width, taps, factor)
    phases = padded.flip(2).permute(3, 1, 0, 2).reshape(factor * width, channels, taps)
    return _pack([phases, bias.repeat(factor)])


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int = 1,
    padding: int | None = None,
) -> Tensor:
    """A convolution, its taps shared out among sums of at most TERMS products."""
    taps = weight.shape[3]
    if padding is None:
        padding = (taps - 1) // 2 * dilation
    at_once = max(1, TERMS // weight.shape[1])
    if taps <= at_once:
        return F.conv2d(x, weight, bias, 1, (0, padding), (1, dilation))
    rows = x.shape[3] + 2 * padding - (taps - 1) * dilation
    parts: list[Tensor] = []
    for first in range(0, taps, at_once):
        part = weight[..., first : first + at_once]
        before = padding - first * dilation  # rows missing before x, and after it
        after = rows - before - x.shape[3] + (part.shape[3] - 1) * dilation
        most = max(before, after, 0)
        y = F.conv2d(x, part, None if parts else bias, 1, (0, most), (1, dilation))
        parts.append(y[..., most - before : most - before + rows])
    out = parts[0] + parts[1]
    for part in parts[2:]:
        out += part
    return out


def pre(mel: Tensor, layer: Pair, ends: Ends = None, addend: Tensor | None = None) -> Tensor:
    """(B, n_mels, T) -> (B, C, 1, T)."""
    out = _conv(mel[:, :, None].contiguous(memory_format=CHANNELS_LAST), layer[0], layer[1])
    return out if addend is None else out.add_(addend[:, :, None])


def up(
    x: Tensor, layer: Pair, shape: Up, ends: Ends = None, addend: Tensor | None = None
) -> Tensor:
    """(B, C, 1, T) -> (B, C / 2, 1, T * factor); uses up its input."""
    weight, bias = layer
    factor, first = shape.factor, shape.paddings[0]
    active = F.leaky_relu_(x, shape.slope)
    batch, rows, width = x.shape[0], x.shape[3], weight.shape[0] // factor
    columns = _conv(active, weight, bias, padding=weight.shape[3] - 1)
    all_rows = columns.shape[3] * factor
    signal = columns.permute(0, 2, 3, 1).reshape(batch, 1, all_rows, width)
    signal = signal[:, :, first : first + rows * factor].permute(0, 3, 1, 2)
    out = signal.contiguous(memory_format=CHANNELS_LAST)
    return out if addend is None else out.add_(addend[:, :, None])


def mrf(
    x: Tensor, tensors: Sequence[Tensor], blocks: Blocks, keep: bool, ends: Ends = None
) -> tuple[Tensor, list[Tensor]]:
    """The mean of a level's residual blocks, (B, C, 1, T), in strips of rows or items."""
    assert not keep
    groups = blocks.divided(tensors)
    batch, channels, _, rows = x.shape
    if x.numel() <= STRIP:
        return _mean(x, groups, blocks), []
    items = max(1, STRIP // (channels * rows))
    halo = blocks.reach
    strips = -(-rows // max(STRIP // channels, 4 * halo, 1))
    length = -(-rows // strips)
    out = torch.empty_like(x)
    for item, row in itertools.product(range(0, batch, items), range(0, rows, length)):
        first, last = max(0, row - halo), min(rows, row + length + halo)
        end = min(rows, row + length)
        some = slice(item, item + items)
        y = _mean(x[some, ..., first:last], groups, blocks)
        out[some, ..., row:end] = y[..., row - first : end - first]
    return out, []


def _mean(x: Tensor, groups: Sequence[Sequence[Tensor]], blocks: Blocks) -> Tensor:
    opened = F.leaky_relu(x, blocks.slope)  # what every block begins with
    total = None
    for group, dilations in zip(groups, blocks.dilations, strict=True):
        convolutions = iter(zip(group[::2], group[1::2], strict=True))
        y, active = x, opened
        for p, dilation in enumerate(dilations):
            if p > 0:
                active = F.leaky_relu(y, blocks.slope)
            step = _conv(active, *next(convolutions), dilation)
            if blocks.paired:
                step = _conv(F.leaky_relu_(step, blocks.slope), *next(convolutions))
            y = step.add_(y)
        total = y if total is None else total.add_(y)
    assert total is not None
    return total.div_(len(groups))


def post(x: Tensor, layer: Pair, final: str | None, ends: Ends = None) -> Tensor:
    """(B, C, 1, T) -> (B, T); uses up its input."""
    weight, bias = layer[0], layer[1] if len(layer) == 2 else None
    return FINISH[final](_conv(F.leaky_relu_(x, LAST_LEAKY_SLOPE), weight, bias))[:, 0, 0]


def level(
    x: Tensor, tensors: Sequence[Tensor], blocks: Blocks, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """`mrf` of (B, C, T)."""
    x = x[:, :, None].contiguous(memory_format=CHANNELS_LAST)
    y, kept = mrf(x, tensors, blocks, keep)
    return y[:, :, 0].contiguous(), kept
