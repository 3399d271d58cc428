"""The layers of a HiFi-GAN generator on Triton kernels; the residual blocks are in `triton_mrf`.

Activations are channels-last, (B, T, C). Weights are laid out by `triton_layouts`; `prepare` does
that once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.vocoder.conv import conv
from ..kernels.vocoder.conv_post import conv_post, conv_post_grad
from ..kernels.vocoder.weight_grad import conv_weight_grad
from ..reference.vocoder.hifigan import LAST_LEAKY_SLOPE
from .backends import WHOLE, Ends, Grads, Needs, Pair
from .shapes import Blocks, Up
from .triton_layouts import grad_blocks, phase_taps
from .triton_layouts import grad_layers as grad_layers  # this and the next a backend has as well
from .triton_layouts import layers as layers
from .triton_layouts import pack as pack
from .triton_layouts import pack_blocks as pack_blocks
from .triton_layouts import unpacked as unpacked
from .triton_mrf import fake_kept as fake_kept
from .triton_mrf import mrf as mrf
from .triton_mrf import mrf_grad as mrf_grad

TAKES_ENDS = True


def pre(mel: Tensor, layer: Pair, ends: Ends = None, addend: Tensor | None = None) -> Tensor:
    """(B, n_mels, T) -> (B, T, C)."""
    lengths, rows_per_frame = ends or WHOLE
    weight, bias = layer
    padding = (weight.shape[1] - 1) // 2
    return conv(
        mel.contiguous(),
        weight,
        bias,
        lengths,
        rows_per_frame,
        padding=padding,
        channels_first=True,
        addend=None if addend is None else _channels_last(addend),
    )


def addend_grad(grad: Tensor, constant: bool, ends: Ends = None) -> Tensor:
    """Of an addend, (B, C, rows) or, where it is `constant`, (B, C, 1)."""
    if ends is not None:
        lengths, rows_per_frame = ends
        past = _past_end(lengths * rows_per_frame, grad.shape[1])
        grad = grad.masked_fill(past[..., None], 0)
    if constant:
        grad = grad.sum(1, keepdim=True, dtype=torch.float32)
    return grad.transpose(1, 2)


def pre_grad(
    grad: Tensor,
    mel: Tensor,
    layer: Pair,
    need_mel: bool,
    needs: Needs,
    ends: Ends = None,
) -> tuple[Tensor | None, Grads]:
    """Gradients of mel, weight and bias (as torch has them)."""
    lengths, rows_per_frame = ends or WHOLE
    weight, grad_mel = layer[0], None
    channels, taps, n = weight.shape
    padding = (taps - 1) // 2
    if need_mel:
        grad_mel = conv(grad, weight, None, lengths, rows_per_frame, padding=padding)
        grad_mel = grad_mel.transpose(1, 2).contiguous()
        if lengths is not None:
            grad_mel.masked_fill_(_past_end(lengths * rows_per_frame, mel.shape[2])[:, None], 0)
    if not any(needs):
        return grad_mel, [None, None]
    grad_weight, grad_bias = conv_weight_grad(
        grad,
        mel.contiguous(),
        (taps,),
        (1,),
        (padding,),
        lengths,
        rows_per_frame,
        channels_first=True,
    )
    assert grad_bias is not None
    return grad_mel, [grad_weight.view(n, taps, channels).permute(0, 2, 1), grad_bias[0]]


def _past_end(lengths: Tensor, rows: int) -> Tensor:
    return torch.arange(rows, device=lengths.device) >= lengths[:, None]


def up(
    x: Tensor, layer: Pair, shape: Up, ends: Ends = None, addend: Tensor | None = None
) -> Tensor:
    """(B, T, C) -> (B, T * factor, C / 2)."""
    lengths, rows_per_frame = ends or WHOLE
    factor = shape.factor
    _, least = phase_taps(shape)
    weight, bias = layer
    columns = conv(
        x,
        weight,
        bias,
        lengths,
        rows_per_frame,
        padding=least,
        dilation=-1,
        phases=(factor, shape.kernel, shape.paddings[0]),
        slope=shape.slope,
        addend=None if addend is None else _channels_last(addend),
    )
    return columns.view(x.shape[0], x.shape[1] * factor, columns.shape[2] // factor)


def up_grad(
    grad: Tensor,
    x: Tensor,
    layer: Pair,
    shape: Up,
    needs: Needs,
    ends: Ends = None,
) -> tuple[Tensor, Grads]:
    """Gradients of the input, and of weight and bias (as torch has them)."""
    lengths, rows_per_frame = ends or WHOLE
    weight, found = layer[0], Grads((None, None))
    channels, kernel, width = weight.shape
    factor, slope, padding = shape.factor, shape.slope, shape.paddings[0]
    # Every row of the input reads `kernel` rows of what arrives, `factor` apart.
    grad_x = conv(
        grad,
        weight,
        None,
        lengths,
        rows_per_frame,
        padding=padding,
        stride=factor,
        slope=slope,
        sign=x,
    )
    if needs[0]:
        grad_weight, _ = conv_weight_grad(
            x,
            grad,
            (kernel,),
            (1,),
            (padding,),
            lengths,
            rows_per_frame,
            stride=factor,
            slopes=(slope, 1.0),
            with_bias=False,
        )
        found[0] = grad_weight.view(channels, kernel, width).permute(0, 2, 1)
    if needs[1]:
        if lengths is not None:
            past = _past_end(lengths * rows_per_frame * factor, grad.shape[1])
            grad = grad.masked_fill(past[..., None], 0)
        found[1] = grad.sum((0, 1), dtype=torch.float32)
    return grad_x, found


def post(x: Tensor, layer: Pair, final: str | None, ends: Ends = None) -> Tensor:
    """(B, T, C) -> (B, T)."""
    lengths, rows_per_frame = ends or WHOLE
    weight, bias = layer[0], layer[1] if len(layer) == 2 else None
    return conv_post(x, weight, bias, lengths, rows_per_frame, LAST_LEAKY_SLOPE, final)


def post_grad(
    grad: Tensor,
    audio: Tensor,
    x: Tensor,
    layer: Pair,
    final: str | None,
    needs: Needs,
    ends: Ends = None,
) -> tuple[Tensor, Grads]:
    """Gradients of the input, and of weight and bias (as torch has them)."""
    lengths, rows_per_frame = ends or WHOLE
    tanh = audio if final == "tanh" else None
    grad_x, grad_weight, grad_bias = conv_post_grad(
        grad, tanh, x, layer[0], lengths, rows_per_frame, LAST_LEAKY_SLOPE
    )
    found: Grads = [grad_weight.t()[None], grad_bias]
    return grad_x, found[: len(needs)]


def level(
    x: Tensor, tensors: Sequence[Tensor], blocks: Blocks, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """`mrf` of (B, C, T)."""
    y, kept = mrf(_channels_last(x), tensors, blocks, keep)
    return y.transpose(1, 2).contiguous(), kept


def level_grad(
    grad: Tensor,
    x: Tensor,
    kept: Sequence[Tensor],
    tensors: Sequence[Tensor],
    blocks: Blocks,
    needs: Needs,
) -> tuple[Tensor, Grads]:
    """`mrf_grad` of `level`."""
    weights = grad_blocks(tensors, blocks)
    grad_x, grads = mrf_grad(_channels_last(grad), _channels_last(x), kept, weights, blocks, needs)
    return grad_x.transpose(1, 2), grads


def _channels_last(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous()


def fake(like: Tensor, channels: int, rows: int) -> Tensor:
    """A tensor laid out as activations here."""
    return like.new_empty(like.shape[0], rows, channels)
