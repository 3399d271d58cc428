"""The layers of a HiFi-GAN generator on Triton kernels, under the names that `torch_backend` and
`torch_inference` have.

Activations are channels-last, (B, T, C); those of all blocks of a stage lie in one tensor,
(G, B, T, C). Weights are laid out by `triton_layouts`; `prepare` does that once.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.vocoder.configs import strip_config
from ..kernels.vocoder.conv import conv
from ..kernels.vocoder.conv_post import conv_post, conv_post_grad
from ..kernels.vocoder.mrf_step import mrf_step
from ..kernels.vocoder.mrf_strip import mrf_strip
from ..kernels.vocoder.weight_grad import conv_weight_grad
from ..reference.vocoder.hifigan import LAST_LEAKY_SLOPE, LEAKY_SLOPE
from .generator import Blocks
from .triton_layouts import (
    for_input,
    grad_weights,
    phase_taps,
    separated,
    step_weights,
    steps_of,
    taps_inside,
)
from .triton_layouts import layers as layers  # these four a backend has as well
from .triton_layouts import pack as pack
from .triton_layouts import pack_blocks as pack_blocks
from .triton_layouts import unpacked as unpacked

Pair = tuple[Tensor, Tensor]  # a convolution's weight and bias, packed
Needs = Sequence[bool]
Grads = list[Tensor | None]


def pre(mel: Tensor, layer: Pair, lengths: Tensor | None = None, rate: int = 1) -> Tensor:
    """(B, n_mels, T) -> (B, T, C)."""
    weight, bias = layer
    padding = (weight.shape[1] - 1) // 2
    return conv(mel.contiguous(), weight, bias, lengths, rate, padding=padding, channels_first=True)


def pre_grad(
    grad: Tensor,
    mel: Tensor,
    layer: Pair,
    need_mel: bool,
    needs: Needs,
    lengths: Tensor | None = None,
    rate: int = 1,
) -> tuple[Tensor | None, Grads]:
    """Gradients of mel, weight and bias (as torch has them)."""
    weight, d_mel = layer[0], None
    n, channels, taps = weight.shape
    padding = (taps - 1) // 2
    if need_mel:
        flipped = for_input(weight).contiguous()
        d_mel = conv(grad, flipped, None, lengths, rate, padding=padding)
        d_mel = d_mel.transpose(1, 2).contiguous()
        if lengths is not None:
            d_mel.masked_fill_(_past_end(lengths * rate, mel.shape[2])[:, None], 0)
    if not any(needs):
        return d_mel, [None, None]
    d_weight, d_bias = conv_weight_grad(
        grad,
        mel.contiguous(),
        (taps,),
        (1,),
        (padding,),
        lengths,
        rate,
        channels_first=True,
    )
    assert d_bias is not None
    return d_mel, [d_weight.view(n, taps, channels).permute(0, 2, 1), d_bias[0]]


def _past_end(lengths: Tensor, rows: int) -> Tensor:
    return torch.arange(rows, device=lengths.device) >= lengths[:, None]


def up(
    x: Tensor,
    layer: Pair,
    factor: int,
    kernel: int,
    lengths: Tensor | None = None,
    rate: int = 1,
) -> Tensor:
    """(B, T, C) -> (B, T * factor, C / 2)."""
    _, least, padding = phase_taps(factor, kernel)
    weight, bias = layer
    columns = conv(
        x,
        weight,
        bias,
        lengths,
        rate,
        padding=least,
        dilation=-1,
        phases=(factor, kernel, padding),
        slope=LEAKY_SLOPE,
    )
    return columns.view(x.shape[0], x.shape[1] * factor, columns.shape[2] // factor)


def up_grad(
    grad: Tensor,
    x: Tensor,
    layer: Pair,
    factor: int,
    needs: Needs,
    lengths: Tensor | None = None,
    rate: int = 1,
) -> tuple[Tensor, Grads]:
    """Gradients of the input, and of weight and bias (as torch has them)."""
    weight, found = layer[0], Grads((None, None))
    channels, width, kernel = weight.shape
    padding = (kernel - factor) // 2
    # Every row of the input reads `kernel` rows of what arrives, `factor` apart.
    inward = taps_inside(weight).contiguous()
    d = conv(
        grad, inward, None, lengths, rate, padding=padding, stride=factor, slope=LEAKY_SLOPE, sign=x
    )
    if needs[0]:
        d_weight, _ = conv_weight_grad(
            x,
            grad,
            (kernel,),
            (1,),
            (padding,),
            lengths,
            rate,
            stride=factor,
            slopes=(LEAKY_SLOPE, 1.0),
            with_bias=False,
        )
        found[0] = d_weight.view(channels, kernel, width).permute(0, 2, 1)
    if needs[1]:
        if lengths is not None:
            past = _past_end(lengths * rate * factor, grad.shape[1])
            grad = grad.masked_fill(past[..., None], 0)
        found[1] = grad.sum((0, 1), dtype=torch.float32)
    return d, found


def mrf(
    x: Tensor,
    packed: Sequence[Tensor],
    blocks: Blocks,
    keep: bool = False,
    lengths: Tensor | None = None,
    rate: int = 1,
) -> tuple[Tensor, list[Tensor]]:
    """The mean of a stage's residual blocks, (B, T, C).

    Kept of all blocks, each (G, B, T, C): for each dilation the activated result of its first
    convolution (type "1"), and the sum after it, the last one excepted. Where blocks differ in
    depth, the same of one block after the other.
    """
    if blocks.ragged:
        total, kept = torch.zeros_like(x), list[Tensor]()
        for g in range(len(blocks.taps)):
            pair = packed[2 * g : 2 * g + 2]
            y, inner = mrf(x, pair, blocks.single(g), keep, lengths, rate)
            total, kept = total.add_(y), [*kept, *inner]
        return total.div_(len(blocks.taps)), kept
    weights, biases = packed
    config = None if keep else strip_config(x, blocks.taps, blocks.dilations, blocks.paired)
    if config is not None:
        whole = mrf_strip(
            x,
            weights,
            biases,
            blocks.taps,
            blocks.dilations,
            lengths,
            rate,
            paired=blocks.paired,
            slope=LEAKY_SLOPE,
            config=config,
        )
        return whole, []
    y, source, kept = x, x, list[Tensor]()
    steps = steps_of(blocks)
    for step, weight in enumerate(step_weights(weights, blocks, x.shape[-1])):
        opens = blocks.paired and step % 2 == 0  # the first of a pair
        last = step + 1 == len(steps)
        source = mrf_step(
            source,
            weight,
            biases[step],
            blocks.taps,
            steps[step][1],
            lengths,
            rate,
            residual=None if opens else y,
            total=last,
            scale=1 / len(blocks.taps) if last else 1.0,
            slope=LEAKY_SLOPE,
            activate_in=opens or not blocks.paired,
            activate_out=opens,
        )
        if not opens:
            y = source
        if keep and not last:
            kept.append(source)
    return y, kept


def mrf_grad(
    grad: Tensor,
    x: Tensor,
    kept: Sequence[Tensor],
    tensors: Sequence[Tensor],
    blocks: Blocks,
    needs: Needs,
    lengths: Tensor | None = None,
    rate: int = 1,
) -> tuple[Tensor, Grads]:
    """Gradients of the input, and of all weights and biases (as torch has them)."""
    groups = blocks.divided(tensors)
    d = grad / len(blocks.taps)
    if blocks.ragged:
        total, all_found, start = torch.zeros_like(x), Grads(), 0
        for g, (group, need) in enumerate(zip(groups, blocks.divided(needs), strict=True)):
            single = blocks.single(g)
            inner = kept[start : start + len(steps_of(single)) - 1]
            start += len(inner)
            d_x, own = mrf_grad(d, x, inner, group, single, need, lengths, rate)
            total, all_found = total.add_(d_x), [*all_found, *own]
        return total, all_found
    steps = steps_of(blocks)
    inputs = [x, *kept]  # of each step
    running = d  # what arrives at the sum after a dilation's steps
    found = [Grads([None] * len(group)) for group in groups]
    needed = blocks.divided(needs)
    for step in reversed(range(len(steps))):
        p, dilations = steps[step]
        closes = blocks.paired and step % 2 == 1  # the second of a pair
        paddings = tuple((k - 1) // 2 * d for k, d in zip(blocks.taps, dilations, strict=True))
        source = inputs[step]
        if any(any(need[2 * step : 2 * step + 2]) for need in needed):
            slopes = 1.0, 1.0 if closes else LEAKY_SLOPE
            d_weights, d_biases = conv_weight_grad(
                d, source, blocks.taps, dilations, paddings, lengths, rate, slopes=slopes
            )
            assert d_biases is not None
            for g, pair in enumerate(separated(d_weights, d_biases, blocks.taps)):
                found[g][2 * step : 2 * step + 2] = pair
        d = mrf_step(
            d,
            grad_weights(groups, step),
            None,
            blocks.taps,
            dilations,
            lengths,
            rate,
            residual=None if closes else running,
            sign=source,
            total=step == 0,
            slope=LEAKY_SLOPE,
        )
        if not closes:
            running = d
    return d, list(itertools.chain(*found))


def post(x: Tensor, layer: Pair, lengths: Tensor | None = None, rate: int = 1) -> Tensor:
    """(B, T, C) -> (B, T)."""
    weight, bias = layer
    return conv_post(x, weight, bias, lengths, rate, LAST_LEAKY_SLOPE)


def post_grad(
    grad: Tensor,
    audio: Tensor,
    x: Tensor,
    layer: Pair,
    needs: Needs,
    lengths: Tensor | None = None,
    rate: int = 1,
) -> tuple[Tensor, Grads]:
    """Gradients of the input, and of weight and bias (as torch has them)."""
    weight = layer[0][0].t().contiguous()
    d_x, d_weight, d_bias = conv_post_grad(grad, audio, x, weight, lengths, rate, LAST_LEAKY_SLOPE)
    return d_x, [d_weight.t()[None], d_bias]


def stage(
    x: Tensor, packed: Sequence[Tensor], blocks: Blocks, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """`mrf` of (B, C, T)."""
    y, kept = mrf(_channels_last(x), packed, blocks, keep)
    return y.transpose(1, 2).contiguous(), kept


def stage_grad(
    grad: Tensor,
    x: Tensor,
    kept: Sequence[Tensor],
    tensors: Sequence[Tensor],
    blocks: Blocks,
    needs: Needs,
) -> tuple[Tensor, Grads]:
    """`mrf_grad` of `stage`."""
    d_x, grads = mrf_grad(_channels_last(grad), _channels_last(x), kept, tensors, blocks, needs)
    return d_x.transpose(1, 2), grads


def _channels_last(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous()


def fake(like: Tensor, channels: int, rows: int) -> Tensor:
    """A tensor laid out as activations here."""
    return like.new_empty(like.shape[0], rows, channels)


def fake_kept(like: Tensor, channels: int, rows: int, blocks: Blocks) -> list[Tensor]:
    """Tensors like those `mrf` keeps."""
    if blocks.ragged:
        singles = (blocks.single(g) for g in range(len(blocks.taps)))
        return sum((fake_kept(like, channels, rows, single) for single in singles), [])
    shape = len(blocks.taps), like.shape[0], rows, channels
    return [like.new_empty(shape) for _ in steps_of(blocks)[1:]]
