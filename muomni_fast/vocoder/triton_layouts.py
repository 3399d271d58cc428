"""Weights as the Triton kernels of the vocoder read them, and gradients of weights as torch has
them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .orders import in_order
from .shapes import Blocks, Layers, Network, Up


def layers(tensors: Sequence[Tensor], network: Network) -> Layers:
    """Weights and biases as torch has them -> as the functions of `triton_backend` take them."""
    return unpacked(in_order(_weights_of(tensors, network), pack, network), network)


def grad_layers(tensors: Sequence[Tensor], network: Network) -> Layers:
    """The same for the functions that give gradients: weights as they are read there."""
    found = iter(in_order(_weights_of(tensors, network), _pack_grads, network))
    pre = [next(found)]
    ups, mrfs = [], []
    for _ in network.factors:
        ups.append([next(found)])
        mrfs.append([[next(found) for _ in even.steps] for even in network.blocks.even])
    return Layers(pre, ups, mrfs, [next(found)])


def pack(tensors: Sequence[Tensor], network: Network) -> list[Tensor]:
    """What `prepare` keeps, and `unpacked` takes."""
    raw = Layers.of(network.divided(tensors))
    pairs = zip(raw.ups, network.ups, strict=True)
    return Layers(
        pre=(taps_inside(raw.pre[0]).contiguous(), raw.pre[1].contiguous()),
        ups=[(_up_weight(up[0], shape), up[1].repeat(shape.factor)) for up, shape in pairs],
        mrfs=[pack_blocks(mrf, network.blocks) for mrf in raw.mrfs],
        post=(raw.post[0][0].t().contiguous(), *raw.post[1:]),
    ).flat()


def _pack_grads(tensors: Sequence[Tensor], network: Network) -> list[Tensor]:
    """`grad_layers` in a row."""
    raw, found = Layers.of(network.divided(tensors)), list[Tensor]()
    found.append(for_input(raw.pre[0]))
    for up, mrf in zip(raw.ups, raw.mrfs, strict=True):
        found += [taps_inside(up[0]), *_flat(grad_blocks(mrf, network.blocks))]
    return [*found, raw.post[0][0].t()]


def _flat(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [tensor for part in parts for tensor in part]


def _weights_of(tensors: Sequence[Tensor], network: Network) -> Sequence[Tensor]:
    """Without the addends, which are not laid out."""
    return tensors[: len(tensors) - len(network.addends)]


def unpacked(tensors: Sequence[Tensor], network: Network) -> Layers:
    """What `pack` gave -> as the functions of `triton_backend` take them."""
    count = 2 * len(network.blocks.even)  # of each level's blocks
    ups, mrfs = [], []
    end = 2 + len(network.factors) * (2 + count)
    for start in range(2, end, 2 + count):
        ups.append(tensors[start : start + 2])
        mrfs.append(tensors[start + 2 : start + 2 + count])
    return Layers(tensors[:2], ups, mrfs, tensors[end : end + network.last_size])


def taps_inside(weight: Tensor) -> Tensor:
    """(N, C, taps) -> (N, taps, C)."""
    return weight.permute(0, 2, 1)


def for_input(weight: Tensor) -> Tensor:
    """(N, C, taps) -> (C, taps, N), taps reversed: the convolution that gives the input's
    gradient."""
    return weight.flip(2).permute(1, 2, 0)


def phase_taps(shape: Up) -> tuple[int, int]:
    """Taps of a transposed convolution as one to `factor` phases, and the row before which its tap
    0 reads."""
    factor, padding = shape.factor, shape.paddings[0]
    least = -((factor - 1 + padding) // factor)
    return (shape.kernel - 1 - padding) // factor - least + 1, least


def _up_weight(weight: Tensor, shape: Up) -> Tensor:
    """(C, C_out, kernel) -> (factor * C_out, taps, C): phases first, zero where one has no tap."""
    channels, width, kernel = weight.shape
    factor, (taps, least) = shape.factor, phase_taps(shape)
    before = -(shape.paddings[0] + least * factor)
    padded = F.pad(weight, (before, taps * factor - kernel - before))
    phases = padded.view(channels, width, taps, factor).permute(3, 1, 2, 0)
    return phases.reshape(factor * width, taps, channels).contiguous()


def pack_blocks(tensors: Sequence[Tensor], blocks: Blocks) -> list[Tensor]:
    """Of the blocks that take their steps together: weights of every step, of every block, in one
    dimension, and biases (steps, G, C)."""
    found, start = [], 0
    for even in blocks.even:
        groups = even.divided(tensors[start : start + even.size])
        start += even.size
        steps = range(0, len(groups[0]), 2)
        weights = [taps_inside(group[step]).flatten() for step in steps for group in groups]
        biases = torch.stack([group[step + 1] for step in steps for group in groups])
        found += [torch.cat(weights), biases.view(len(steps), len(groups), -1)]
    return found


def step_weights(packed: Tensor, blocks: Blocks, channels: int) -> list[Tensor]:
    """The weights that `pack_blocks` gave, step by step."""
    return list(packed.split(sum(blocks.taps) * channels * channels))


def grad_blocks(tensors: Sequence[Tensor], blocks: Blocks) -> list[list[Tensor]]:
    """Of the blocks that take their steps together: weights of each step, of every block, that
    give the gradient of its input."""
    found, start = [], 0
    for even in blocks.even:
        groups = even.divided(tensors[start : start + even.size])
        start += even.size
        steps = range(0, len(groups[0]), 2)
        found.append([torch.cat([for_input(g[step]).flatten() for g in groups]) for step in steps])
    return found


def separated(weights: Tensor, biases: Tensor, taps: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """What `conv_weight_grad` gives -> weight (C, C, taps) and bias of each block."""
    size = biases.shape[1] ** 2
    parts = weights.split([k * size for k in taps])
    side = biases.shape[1]
    return [
        (part.view(side, k, side).permute(0, 2, 1), bias)
        for part, k, bias in zip(parts, taps, biases.unbind(), strict=True)
    ]
