"""The residual blocks of an upsampling level on Triton kernels, forward and backward.

The activations of all blocks lie in one tensor, (G, B, T, C). Blocks that differ in their number of
dilations cannot take their steps together: `Blocks.even` divides them, and every function here goes
over what it gives.
"""

import itertools
from collections.abc import Sequence

from torch import Tensor

from ..kernels.vocoder.configs import strip_config
from ..kernels.vocoder.mrf_step import mrf_step
from ..kernels.vocoder.mrf_strip import mrf_strip
from ..kernels.vocoder.weight_grad import conv_weight_grad
from .backends import WHOLE, Ends, Grads, Needs
from .shapes import Blocks
from .triton_layouts import separated, step_weights


def mrf(
    x: Tensor, tensors: Sequence[Tensor], blocks: Blocks, keep: bool, ends: Ends = None
) -> tuple[Tensor, list[Tensor]]:
    """The mean of a level's residual blocks, (B, T, C).

    Kept of all blocks, each (G, B, T, C): for each dilation the activated result of its first
    convolution (type "1"), and the sum after it, the last one excepted.
    """
    total, kept = None, list[Tensor]()
    for even, weights, biases in zip(blocks.even, tensors[::2], tensors[1::2], strict=True):
        y, inner = _mean(x, weights, biases, even, keep, ends)
        total, kept = y if total is None else total.add_(y), [*kept, *inner]
    assert total is not None
    return total if len(blocks.even) == 1 else total.div_(len(blocks.even)), kept


def _mean(
    x: Tensor, weights: Tensor, biases: Tensor, blocks: Blocks, keep: bool, ends: Ends
) -> tuple[Tensor, list[Tensor]]:
    """`mrf` of blocks that take their steps together."""
    lengths, rows_per_frame = ends or WHOLE
    config = None if keep else strip_config(x, blocks.taps, blocks.dilations, blocks.paired)
    if config is not None:
        whole = mrf_strip(
            x,
            weights,
            biases,
            blocks.taps,
            blocks.dilations,
            lengths,
            rows_per_frame,
            paired=blocks.paired,
            slope=blocks.slope,
            config=config,
        )
        return whole, []
    y, source, kept = x, x, list[Tensor]()
    for step, weight in enumerate(step_weights(weights, blocks, x.shape[-1])):
        opens = blocks.paired and step % 2 == 0  # the first of a pair
        last = step + 1 == len(blocks.steps)
        source = mrf_step(
            source,
            weight,
            biases[step],
            blocks.taps,
            blocks.steps[step],
            lengths,
            rows_per_frame,
            residual=None if opens else y,
            total=last,
            scale=1 / len(blocks.taps) if last else 1.0,
            slope=blocks.slope,
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
    weights: Sequence[Sequence[Tensor]],
    blocks: Blocks,
    needs: Needs,
    ends: Ends = None,
) -> tuple[Tensor, Grads]:
    """Gradients of the input, and of all weights and biases (as torch has them); `weights` as
    `grad_blocks` gives them."""
    grad = grad / len(blocks.taps)
    total, found, first, of_kept = None, Grads(), 0, iter(kept)
    for even, own in zip(blocks.even, weights, strict=True):
        needed = needs[first : first + even.size]
        first += even.size
        inputs = [x, *itertools.islice(of_kept, len(even.steps) - 1)]  # of each step
        grad_x, grads = _mean_grad(grad, inputs, own, even, needed, ends)
        total, found = grad_x if total is None else total.add_(grad_x), [*found, *grads]
    assert total is not None
    return total, found


def _mean_grad(
    grad: Tensor,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    blocks: Blocks,
    needs: Needs,
    ends: Ends,
) -> tuple[Tensor, Grads]:
    """`mrf_grad` of blocks that take their steps together, each of the sum of their results."""
    lengths, rows_per_frame = ends or WHOLE
    needed = blocks.divided(needs)
    found = [Grads([None] * size) for size in blocks.sizes]
    running = grad  # what arrives at the sum after a dilation's steps
    for step in reversed(range(len(blocks.steps))):
        dilations = blocks.steps[step]
        closes = blocks.paired and step % 2 == 1  # the second of a pair
        paddings = tuple((k - 1) // 2 * d for k, d in zip(blocks.taps, dilations, strict=True))
        source = inputs[step]
        if any(any(need[2 * step : 2 * step + 2]) for need in needed):
            slopes = 1.0, 1.0 if closes else blocks.slope
            grad_weight, grad_bias = conv_weight_grad(
                grad,
                source,
                blocks.taps,
                dilations,
                paddings,
                lengths,
                rows_per_frame,
                slopes=slopes,
            )
            assert grad_bias is not None
            for g, pair in enumerate(separated(grad_weight, grad_bias, blocks.taps)):
                found[g][2 * step : 2 * step + 2] = pair
        grad = mrf_step(
            grad,
            weights[step],
            None,
            blocks.taps,
            dilations,
            lengths,
            rows_per_frame,
            residual=None if closes else running,
            sign=source,
            total=step == 0,
            slope=blocks.slope,
        )
        if not closes:
            running = grad
    return grad, list(itertools.chain(*found))


def fake_kept(like: Tensor, channels: int, rows: int, blocks: Blocks) -> list[Tensor]:
    """Tensors like those `mrf` keeps."""
    return [
        like.new_empty(len(even.taps), like.shape[0], rows, channels)
        for even in blocks.even
        for _ in even.steps[1:]
    ]
