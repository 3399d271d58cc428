"""The layers of a HiFi-GAN generator without Triton, forward and backward: what trains on a CPU.

torch's convolutions (oneDNN on a CPU) on (B, C, T); activations and sums between them are computed
in place, in memory nobody else needs. Backward, each gradient is computed only where it is needed,
from the same few activations that the kernels keep. Channels-last convolutions, which
`torch_inference` has, are faster forward and slower backward.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..reference.vocoder.hifigan import LAST_LEAKY_SLOPE
from .backends import Ends, Grads, Needs, Pair
from .shapes import Blocks, Layers, Network, Up

TAKES_ENDS = False  # `ends` is always None here
# What may follow the last convolution, in place.
FINISH: dict[str | None, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh_,
    "clamp": functools.partial(torch.clamp_, min=-1, max=1),
    None: lambda audio: audio,
}

leaky_relu_backward = torch.ops.aten.leaky_relu_backward


def layers(tensors: Sequence[Tensor], network: Network) -> Layers:
    """Weights and biases as torch has them -> as the functions here take them."""
    return Layers.of(network.divided(tensors))


def pack_blocks(tensors: Sequence[Tensor], blocks: Blocks) -> list[Tensor]:
    """The same of one level's residual blocks."""
    return list(tensors)


def _conv_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    needs: Needs,
    dilation: int = 1,
    up: Up | None = None,
) -> tuple[Any, Any, Any]:
    """Gradients of the input, the weight and the bias of a convolution that pads equally, or of a
    transposed one."""
    if up is None:
        stride, padding, more, width = 1, (weight.shape[2] - 1) // 2 * dilation, 0, weight.shape[0]
    else:
        stride, (padding, more), width = up.factor, up.paddings, weight.shape[1]
    shape = [stride], [padding], [dilation], up is not None, [more], 1
    return torch.ops.aten.convolution_backward(grad, x, weight, [width], *shape, list(needs))


def grad_layers(tensors: Sequence[Tensor], network: Network) -> Layers:
    """Weights and biases as they are."""
    return Layers.of(network.divided(tensors))


def pre(mel: Tensor, layer: Pair, ends: Ends = None, addend: Tensor | None = None) -> Tensor:
    """(B, n_mels, T) -> (B, C, T)."""
    weight, bias = layer
    out = F.conv1d(_in_order(mel), weight, bias, padding=(weight.shape[2] - 1) // 2)
    return out if addend is None else out.add_(addend)


def _in_order(mel: Tensor) -> Tensor:
    """With the strides of a new tensor: torch chooses a convolution, and its rounding, by those of
    dimensions of one element too, which `contiguous` leaves alone."""
    like = mel.new_empty(mel.shape)
    return mel if mel.stride() == like.stride() else like.copy_(mel)


def pre_grad(
    grad: Tensor, mel: Tensor, layer: Pair, need_mel: bool, needs: Needs, ends: Ends = None
) -> tuple[Tensor | None, Grads]:
    """Gradients of mel, weight and bias."""
    grad_mel, *found = _conv_grad(grad, mel, layer[0], (need_mel, *needs))
    return grad_mel, found


def addend_grad(grad: Tensor, constant: bool, ends: Ends = None) -> Tensor:
    """Of an addend, (B, C, rows) or, where it is `constant`, (B, C, 1)."""
    dtype = torch.promote_types(grad.dtype, torch.float32)
    return grad.sum(2, keepdim=True, dtype=dtype) if constant else grad


def up(
    x: Tensor, layer: Pair, shape: Up, ends: Ends = None, addend: Tensor | None = None
) -> Tensor:
    """(B, C, T) -> (B, C / 2, T * factor)."""
    active = F.leaky_relu(x, shape.slope)
    weight, bias = layer
    out = F.conv_transpose1d(active, weight, bias, shape.factor, *shape.paddings)
    return out if addend is None else out.add_(addend)


def up_grad(
    grad: Tensor, x: Tensor, layer: Pair, shape: Up, needs: Needs, ends: Ends = None
) -> tuple[Tensor, Grads]:
    """Gradients of the input, and of weight and bias."""
    active = F.leaky_relu(x, shape.slope)
    grad_active, *found = _conv_grad(grad, active, layer[0], (True, *needs), up=shape)
    return leaky_relu_backward(grad_active, x, shape.slope, False), found


def mrf(
    x: Tensor, tensors: Sequence[Tensor], blocks: Blocks, keep: bool, ends: Ends = None
) -> tuple[Tensor, list[Tensor]]:
    """The mean of a level's residual blocks, (B, C, T).

    Kept of each block: for each dilation the activated result of its first convolution (type "1"),
    and the sum after it, the last one excepted.
    """
    kept: list[Tensor] = []
    total = None
    for branch, group in enumerate(blocks.divided(tensors)):
        y = x
        for p, dilation in enumerate(blocks.dilations[branch]):
            first = 2 * p * blocks.per_dilation
            padding = (blocks.taps[branch] - 1) // 2
            if p > 0 and keep:
                kept.append(y)
            weight, bias = group[first : first + 2]
            active = F.leaky_relu(y, blocks.slope)
            step = F.conv1d(active, weight, bias, padding=padding * dilation, dilation=dilation)
            if blocks.paired:
                inner = F.leaky_relu_(step, blocks.slope)
                if keep:
                    kept.append(inner)
                weight, bias = group[first + 2 : first + 4]
                step = F.conv1d(inner, weight, bias, padding=padding)
            y = step.add_(y)
        total = y if total is None else total.add_(y)
    assert total is not None
    return total.div_(len(blocks.taps)), kept


def mrf_grad(
    grad: Tensor,
    x: Tensor,
    kept: Sequence[Tensor],
    weights: Sequence[Tensor],
    blocks: Blocks,
    needs: Needs,
    ends: Ends = None,
) -> tuple[Tensor, Grads]:
    """Gradients of the input, and of all weights and biases."""
    grad = grad / len(blocks.taps)
    found: Grads = []
    grad_x = None
    kept = list(kept)
    groups, needed = blocks.divided(weights), blocks.divided(needs)
    for branch in reversed(range(len(groups))):
        group, need, running = groups[branch], needed[branch], grad
        for p in reversed(range(len(blocks.dilations[branch]))):
            first = 2 * p * blocks.per_dilation
            step, pair = running, list[Any]()
            if blocks.paired:
                inner, wanted = kept.pop(), need[first + 2 : first + 4]
                step, *pair = _conv_grad(running, inner, group[first + 2], (True, *wanted))
                step = leaky_relu_backward(step, inner, blocks.slope, True)
            y = kept.pop() if p > 0 else x
            active = F.leaky_relu(y, blocks.slope)
            step, *own = _conv_grad(
                step,
                active,
                group[first],
                (True, *need[first : first + 2]),
                blocks.dilations[branch][p],
            )
            found = [*own, *pair, *found]
            running = leaky_relu_backward(step, y, blocks.slope, False).add_(running)
        grad_x = running if grad_x is None else grad_x.add_(running)
    assert grad_x is not None
    return grad_x, found


def post(x: Tensor, layer: Pair, final: str | None, ends: Ends = None) -> Tensor:
    """(B, C, T) -> (B, T)."""
    weight, bias = layer[0], layer[1] if len(layer) == 2 else None
    active = F.leaky_relu(x, LAST_LEAKY_SLOPE)
    return FINISH[final](F.conv1d(active, weight, bias, padding=(weight.shape[2] - 1) // 2))[:, 0]


def post_grad(
    grad: Tensor,
    audio: Tensor,
    x: Tensor,
    layer: Pair,
    final: str | None,
    needs: Needs,
    ends: Ends = None,
) -> tuple[Tensor, Grads]:
    """Gradients of the input, and of weight and bias."""
    if final == "tanh":
        grad = torch.ops.aten.tanh_backward(grad, audio)
    active = F.leaky_relu(x, LAST_LEAKY_SLOPE)
    wanted = True, needs[0], len(layer) == 2 and needs[1]
    grad_active, *found = _conv_grad(grad[:, None], active, layer[0], wanted)
    return leaky_relu_backward(grad_active, x, LAST_LEAKY_SLOPE, False), found[: len(layer)]


level, level_grad = mrf, mrf_grad  # activations are (B, C, T) here as outside


def fake(like: Tensor, channels: int, rows: int) -> Tensor:
    """A tensor laid out as activations here."""
    return like.new_empty(like.shape[0], channels, rows)


def fake_kept(like: Tensor, channels: int, rows: int, blocks: Blocks) -> list[Tensor]:
    """Tensors like those `mrf` keeps."""
    count = sum(blocks.per_dilation * len(branch) - 1 for branch in blocks.dilations)
    return [fake(like, channels, rows) for _ in range(count)]
