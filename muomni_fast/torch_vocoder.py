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

Pair = tuple[Tensor, Tensor]  # a convolution's weight and bias
Needs = Sequence[bool]
Grads = list[Tensor | None]


def layers(tensors: Sequence[Tensor], network: Network) -> Layers:
    """Weights and biases as torch has them -> as the functions here take them."""
    return Layers.of(tensors, len(network.rates), sum(network.blocks.sizes))


def past_end(lengths: Tensor | None, rate: int, like: Tensor) -> Tensor | None:
    """(B, 1, ..., T) of the rows after an item's end, or None where all count."""
    if lengths is None:
        return None
    rows = torch.arange(like.shape[-1], device=like.device)
    past = rows >= (lengths * rate)[:, None]
    return past.view(len(lengths), *[1] * (like.ndim - 2), like.shape[-1])


def silenced(x: Tensor, past: Tensor | None) -> Tensor:
    """Zero, in place, whatever it was, after an item's end."""
    return x if past is None else x.masked_fill_(past, 0)


def _activated(x: Tensor, slope: float, past: Tensor | None) -> Tensor:
    return silenced(F.leaky_relu(x, slope), past)


def _activation_grad(
    grad: Tensor, x: Tensor, slope: float, past: Tensor | None, of_result: bool = False
) -> Tensor:
    return silenced(torch.ops.aten.leaky_relu_backward(grad, x, slope, of_result), past)


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
    past = past_end(lengths, 1, mel)
    if past is not None:
        mel = mel.masked_fill(past, 0)
    weight, bias = layer
    return F.conv1d(mel, weight, bias, padding=(weight.shape[2] - 1) // 2)


def pre_grad(
    grad: Tensor, mel: Tensor, layer: Pair, lengths: Tensor | None, need_mel: bool, needs: Needs
) -> tuple[Tensor | None, Grads]:
    """Gradients of mel, weight and bias."""
    past = past_end(lengths, 1, mel)
    if past is not None:
        mel = mel.masked_fill(past, 0)
    d_mel, *found = _conv_grad(grad, mel, layer[0], (need_mel, *needs))
    return silenced(d_mel, past) if need_mel else None, found


def up(
    x: Tensor, layer: Pair, factor: int, kernel: int, lengths: Tensor | None, rate: int
) -> Tensor:
    """(B, C, T) -> (B, C / 2, T * factor)."""
    active = _activated(x, LEAKY_SLOPE, past_end(lengths, rate, x))
    weight, bias = layer
    return F.conv_transpose1d(active, weight, bias, factor, (kernel - factor) // 2)


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
    past = past_end(lengths, rate, x)
    active = _activated(x, LEAKY_SLOPE, past)
    d, *found = _conv_grad(grad, active, layer[0], (True, *needs), 1, factor, True)
    return _activation_grad(d, x, LEAKY_SLOPE, past), found


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
    past = past_end(lengths, rate, x)
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
            active = _activated(y, LEAKY_SLOPE, past)
            step = F.conv1d(active, weight, bias, padding=padding * dilation, dilation=dilation)
            if blocks.paired:
                inner = silenced(F.leaky_relu_(step, LEAKY_SLOPE), past)
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
    tensors: Sequence[Tensor],
    blocks: Blocks,
    lengths: Tensor | None,
    rate: int,
    needs: Needs,
) -> tuple[Tensor, Grads]:
    """Gradients of the input, and of all weights and biases."""
    past = past_end(lengths, rate, x)
    grad = silenced(grad / len(blocks.taps), past)
    found: Grads = []
    d_x = None
    kept = list(kept)
    groups, needed = blocks.divided(tensors), blocks.divided(needs)
    for branch in reversed(range(len(groups))):
        group, need, d = groups[branch], needed[branch], grad
        for p in reversed(range(len(blocks.dilations[branch]))):
            first = 2 * p * blocks.per_dilation
            step, pair = d, list[Any]()
            if blocks.paired:
                inner, wanted = kept.pop(), need[first + 2 : first + 4]
                step, *pair = _conv_grad(d, inner, group[first + 2], (True, *wanted))
                step = _activation_grad(step, inner, LEAKY_SLOPE, past, of_result=True)
            y = kept.pop() if p > 0 else x
            active = _activated(y, LEAKY_SLOPE, past)
            step, *own = _conv_grad(
                step,
                active,
                group[first],
                (True, *need[first : first + 2]),
                blocks.dilations[branch][p],
            )
            found = [*own, *pair, *found]
            d = _activation_grad(step, y, LEAKY_SLOPE, past).add_(d)
        d_x = d if d_x is None else d_x.add_(d)
    assert d_x is not None
    return d_x, found


def post(x: Tensor, layer: Pair, lengths: Tensor | None, rate: int) -> Tensor:
    """(B, C, T) -> (B, T)."""
    past = past_end(lengths, rate, x)
    weight, bias = layer
    active = _activated(x, LAST_LEAKY_SLOPE, past)
    audio = F.conv1d(active, weight, bias, padding=(weight.shape[2] - 1) // 2).tanh_()
    return silenced(audio, past)[:, 0]


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
    past = past_end(lengths, rate, x)
    grad = silenced(torch.ops.aten.tanh_backward(grad, audio)[:, None], past)
    active = _activated(x, LAST_LEAKY_SLOPE, past)
    d, *found = _conv_grad(grad, active, layer[0], (True, *needs))
    return _activation_grad(d, x, LAST_LEAKY_SLOPE, past), found


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
