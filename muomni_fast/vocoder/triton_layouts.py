"""Weights as the Triton kernels of the vocoder read them, and gradients of weights as torch has
them.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .generator import Blocks, Layers, Network


def layers(tensors: Sequence[Tensor], network: Network) -> Layers:
    """Weights and biases as torch has them -> as the functions of `triton_backend` take them."""
    raw = Layers.of(tensors, len(network.rates), sum(network.blocks.sizes))
    pairs = zip(raw.ups, network.rates, strict=True)
    return Layers(
        pre=(taps_inside(raw.pre[0]).contiguous(), raw.pre[1].contiguous()),
        ups=[(_up_weight(up[0], rate), up[1].repeat(rate)) for up, rate in pairs],
        mrfs=[pack_blocks(mrf, network.blocks) for mrf in raw.mrfs],
        post=(raw.post[0][0].t().contiguous(), raw.post[1]),
    )


def pack(tensors: Sequence[Tensor], network: Network) -> list[Tensor]:
    """What `prepare` keeps, and `unpacked` takes."""
    return layers(tensors, network).flat()


def unpacked(tensors: Sequence[Tensor], network: Network) -> Layers:
    """What `pack` gave -> as the functions of `triton_backend` take them."""
    stages = len(network.rates)
    return Layers.of(tensors, stages, (len(tensors) - 4) // stages - 2)


def taps_inside(weight: Tensor) -> Tensor:
    """(N, C, taps) -> (N, taps, C)."""
    return weight.permute(0, 2, 1)


def for_input(weight: Tensor) -> Tensor:
    """(N, C, taps) -> (C, taps, N), taps reversed: the convolution that gives the input's
    gradient."""
    return weight.flip(2).permute(1, 2, 0)


def phase_taps(rate: int, kernel: int) -> tuple[int, int, int]:
    """Taps of a transposed convolution as one to `rate` phases, the row before which its tap 0
    reads, and its padding."""
    padding = (kernel - rate) // 2
    least = -((rate - 1 + padding) // rate)
    return (kernel - 1 - padding) // rate - least + 1, least, padding


def _up_weight(weight: Tensor, rate: int) -> Tensor:
    """(C, C_out, kernel) -> (rate * C_out, taps, C): phases first, zero where one has no tap."""
    channels, width, kernel = weight.shape
    taps, least, padding = phase_taps(rate, kernel)
    before = -(padding + least * rate)
    padded = F.pad(weight, (before, taps * rate - kernel - before))
    phases = padded.view(channels, width, taps, rate).permute(3, 1, 2, 0)
    return phases.reshape(rate * width, taps, channels).contiguous()


def pack_blocks(tensors: Sequence[Tensor], blocks: Blocks) -> list[Tensor]:
    """Weights of every step, of every block, in one dimension, and biases (steps, G, C); such a
    pair for each block where blocks differ in depth."""
    groups = blocks.divided(tensors)
    if blocks.ragged:
        pairs = (pack_blocks(group, blocks.single(g)) for g, group in enumerate(groups))
        return [*itertools.chain(*pairs)]
    steps = range(0, len(groups[0]), 2)
    weights = [taps_inside(group[step]).flatten() for step in steps for group in groups]
    biases = torch.stack([group[step + 1] for step in steps for group in groups])
    return [torch.cat(weights), biases.view(len(steps), len(groups), -1)]


def step_weights(packed: Tensor, blocks: Blocks, channels: int) -> list[Tensor]:
    """The weights that `pack_blocks` gave, step by step."""
    return list(packed.split(sum(blocks.taps) * channels * channels))


def grad_weights(groups: Sequence[Sequence[Tensor]], step: int) -> Tensor:
    """Weights of a step, of every block, that give the gradient of its input."""
    return torch.cat([for_input(group[2 * step]).flatten() for group in groups])


def steps_of(blocks: Blocks) -> list[tuple[int, tuple[int, ...]]]:
    """Dilation's number and dilations of each block, of each step."""
    found = []
    for p in range(blocks.depth):
        found.append((p, tuple(branch[p] for branch in blocks.dilations)))
        if blocks.paired:
            found.append((p, (1,) * len(blocks.taps)))
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
