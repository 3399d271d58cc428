"""The layers of a HiFi-GAN generator without Triton, forward and backward: what trains on a CPU.

torch's convolutions (oneDNN on a CPU) on (B, C, T); activations and sums between them are computed
in place, in memory nobody else needs. Backward, each gradient is computed only where it is needed,
from the same few activations that the kernels keep. Channels-last convolutions, which
`torch_inference` has, are faster forward and slower backward.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .network import Blocks, Layers, Network
from .reference.hifigan import LAST_LEAKY_SLOPE, LEAKY_SLOPE

Pair = Sequence[Tensor]  # a convolution's weight and bias
Needs = Sequence[bool]
Grads = list[Tensor | None]


def layers(tensors: Sequence[Tensor], network: Network) -> Layers:
    """Weights and biases as torch has them -> as the functions here take them."""
    return Layers.of(tensors, len(network.rates), sum(network.blocks.sizes))


def rows_that_count(lengths: Tensor | None, rate: int, like: Tensor) -> Tensor | None:
    """(B, 1, ..., T) of 1 where an item's rows count, 0 after its end, or None where all do."""
    if lengths is None:
        return None
    rows = torch.arange(like.shape[-1], device=like.device)
    counts = (rows < (lengths * rate)[:, None]).to(like.dtype)
    return counts.view(len(lengths), *[1] * (like.ndim - 2), -1)


def _activated(x: Tensor, slope: float, real: Tensor | None) -> Tensor:
    active = F.leaky_relu(x, slope)
    return active if real is None else active.mul_(real)


def _activation_grad(
    grad: Tensor, x: Tensor, slope: float, real: Tensor | None, of_result: bool = False
) -> Tensor:
    grad = torch.ops.aten.leaky_relu_backward(grad, x, slope, of_result)
    return grad if real is None else grad.mul_(real)


def _conv_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    needs: Needs,
    dilation: int = 1,
    stride: int = 1,
    transposed: bool = False,
) -> tuple[Any, Any, Any]:
    """Gradients of the input, the weight and the bias of a convolution that pads equally."""
    taps = weight.shape[2]
    padding = (taps - stride) // 2 if transposed else (taps - 1) // 2 * dilation
    sizes = [weight.shape[1 if transposed else 0]]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, sizes, [stride], [padding], [dilation], transposed, [0], 1, list(needs)
    )


def pre(mel: Tensor, layer: Pair, lengths: Tensor | None) -> Tensor:
    """(B, n_mels, T) -> (B, C, T)."""
    real = rows_that_count(lengths, 1, mel)
    if real is not None:
        mel = mel.masked_fill(real == 0, 0)  # whatever it holds there
    weight, bias = layer
    return F.conv1d(mel, weight, bias, padding=(weight.shape[2] - 1) // 2)


def pre_grad(
    grad: Tensor, mel: Tensor, layer: Pair, lengths: Tensor | None, need_mel: bool, needs: Needs
) -> tuple[Tensor | None, Grads]:
    """Gradients of mel, weight and bias."""
    real = rows_that_count(lengths, 1, mel)
    if real is not None:
        mel = mel.masked_fill(real == 0, 0)
    d_mel, *found = _conv_grad(grad, mel, layer[0], (need_mel, *needs))
    if need_mel and real is not None:
        d_mel.mul_(real)
    return d_mel, found


def up(
    x: Tensor, layer: Pair, factor: int, kernel: int, lengths: Tensor | None, rate: int
) -> Tensor:
    """(B, C, T) -> (B, C / 2, T * factor)."""
    active = _activated(x, LEAKY_SLOPE, rows_that_count(lengths, rate, x))
    return F.conv_transpose1d(active, *layer, stride=factor, padding=(kernel - factor) // 2)


def up_grad(
    grad: Tensor,
    x: Tensor,
    layer: Pair,
    factor: int,
    lengths: Tensor | None,
    rate: int,
    needs: Needs,
) -> tuple[Tensor, Grads]:
    """Gradients of the input, and of weight and bias."""
    real = rows_that_count(lengths, rate, x)
    active = _activated(x, LEAKY_SLOPE, real)
    d, *found = _conv_grad(grad, active, layer[0], (True, *needs), 1, factor, True)
    return _activation_grad(d, x, LEAKY_SLOPE, real), found


def mrf(
    x: Tensor,
    tensors: Sequence[Tensor],
    blocks: Blocks,
    lengths: Tensor | None = None,
    rate: int = 1,
    keep: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """The mean of a stage's residual blocks, (B, C, T).

    Kept of each block: for each dilation the activated result of its first convolution (type "1"),
    and the sum after it, the last one excepted.
    """
    real = rows_that_count(lengths, rate, x)
    kept: list[Tensor] = []
    total = None
    for branch, group in enumerate(blocks.divided(tensors)):
        y = x
        for p, dilation in enumerate(blocks.dilations[branch]):
            first = 2 * p * blocks.per_dilation
            padding = (blocks.taps[branch] - 1) // 2
            if p > 0 and keep:
                kept.append(y)
            step = F.conv1d(
                _activated(y, LEAKY_SLOPE, real),
                *group[first : first + 2],
                padding=padding * dilation,
                dilation=dilation,
            )
            if blocks.paired:
                inner = F.leaky_relu_(step, LEAKY_SLOPE)
                if real is not None:
                    inner.mul_(real)
                if keep:
                    kept.append(inner)
                step = F.conv1d(inner, *group[first + 2 : first + 4], padding=padding)
            y = step.add_(y)
        total = y if total is None else total.add_(y)
    assert total is not None
    return total.div_(len(blocks.taps)), kept


def mrf_grad(
    grad: Tensor,
    x: Tensor,
    kept: Sequence[Tensor],
    tensors: Sequence[Tensor],
    blocks: Blocks,
    lengths: Tensor | None,
    rate: int,
    needs: Needs,
) -> tuple[Tensor, Grads]:
    """Gradients of the input, and of all weights and biases."""
    real = rows_that_count(lengths, rate, x)
    grad = grad / len(blocks.taps)
    if real is not None:
        grad.mul_(real)
    found: Grads = []
    d_x = None
    kept = list(kept)
    groups, needed = blocks.divided(tensors), blocks.divided(needs)  # type: ignore[arg-type]
    for branch in reversed(range(len(groups))):
        group, need, d = groups[branch], needed[branch], grad
        for p in reversed(range(len(blocks.dilations[branch]))):
            first = 2 * p * blocks.per_dilation
            step, pair = d, []
            if blocks.paired:
                inner = kept.pop()
                step, *pair = _conv_grad(d, inner, group[first + 2], (True, *need[first + 2 :][:2]))
                step = _activation_grad(step, inner, LEAKY_SLOPE, real, of_result=True)
            y = kept.pop() if p > 0 else x
            active = _activated(y, LEAKY_SLOPE, real)
            step, *own = _conv_grad(
                step,
                active,
                group[first],
                (True, *need[first : first + 2]),
                blocks.dilations[branch][p],
            )
            found = [*own, *pair, *found]
            d = _activation_grad(step, y, LEAKY_SLOPE, real).add_(d)
        d_x = d if d_x is None else d_x.add_(d)
    assert d_x is not None
    return d_x, found


def post(x: Tensor, layer: Pair, lengths: Tensor | None, rate: int) -> Tensor:
    """(B, C, T) -> (B, T)."""
    real = rows_that_count(lengths, rate, x)
    weight, bias = layer
    active = _activated(x, LAST_LEAKY_SLOPE, real)
    audio = F.conv1d(active, weight, bias, padding=(weight.shape[2] - 1) // 2).tanh_()[:, 0]
    return audio if real is None else audio.mul_(real[:, 0])


def post_grad(
    grad: Tensor,
    audio: Tensor,
    x: Tensor,
    layer: Pair,
    lengths: Tensor | None,
    rate: int,
    needs: Needs,
) -> tuple[Tensor, Grads]:
    """Gradients of the input, and of weight and bias."""
    real = rows_that_count(lengths, rate, x)
    grad = torch.ops.aten.tanh_backward(grad, audio)[:, None]
    if real is not None:
        grad = grad * real
    active = _activated(x, LAST_LEAKY_SLOPE, real)
    d, *found = _conv_grad(grad, active, layer[0], (True, *needs))
    return _activation_grad(d, x, LAST_LEAKY_SLOPE, real), found


def stage(
    x: Tensor, tensors: Sequence[Tensor], blocks: Blocks, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """`mrf` of (B, C, T) and weights as torch has them."""
    return mrf(x, tensors, blocks, keep=keep)


def stage_grad(
    grad: Tensor,
    x: Tensor,
    kept: Sequence[Tensor],
    tensors: Sequence[Tensor],
    blocks: Blocks,
    needs: Needs,
) -> tuple[Tensor, Grads]:
    """`mrf_grad` of `stage`."""
    return mrf_grad(grad, x, kept, tensors, blocks, None, 1, needs)


def fake(like: Tensor, channels: int, rows: int) -> Tensor:
    """A tensor laid out as activations here."""
    return like.new_empty(like.shape[0], channels, rows)


def fake_kept(like: Tensor, channels: int, rows: int, blocks: Blocks) -> list[Tensor]:
    """Tensors like those `mrf` keeps."""
    count = sum(blocks.per_dilation * len(branch) - 1 for branch in blocks.dilations)
    return [fake(like, channels, rows) for _ in range(count)]
