"""The quantizer's operator for training, as `ops` has those for encoding and decoding."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import counters
from ..operators import needed, one_by_one, operator, refusal
from .ops import backend_of, empty_of, scratch


@operator("rvq_quantize")
def rvq_quantize(
    mel: Tensor,
    codebooks: Tensor,
    in_weight: Tensor | None,
    in_bias: Tensor | None,
    out_weight: Tensor | None,
    out_bias: Tensor | None,
    reached: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Frames (N, n_mels), sums of codewords (N, D), two losses (Q,), and codes (N, Q) int64.

    The losses are the mean squares of what each codebook leaves: equal values, but the first has
    the gradient of the commitment loss, the second that of the codebook loss. `reached` (N,) int64
    says how many codebooks a row goes through, if not all: other codes are -1, and losses are means
    over the rows that reach a codebook.
    """
    backend = backend_of("rvq_quantize", mel, codebooks)
    invalid, nonfinite = counters.known.get(mel.device) or counters.counters(mel.device)
    codes, sums = backend.encode(
        mel, [codebooks], None, in_weight, in_bias, nonfinite, with_sums=reached is None
    )
    if reached is None:
        assert sums is not None  # asked for
        quantized = backend.decode(codes, codebooks, None, None, invalid)
        loss = sums / max(1, quantized.numel())
    else:
        # A row's first codes are the same however many follow: those not wanted are taken away.
        reaches = _reaches(reached, codebooks)
        codes = codes.where(reaches, -1)
        residual, squares = _projected(mel, codebooks, in_weight, in_bias), []
        quantized = torch.zeros_like(residual)
        for q, codebook in enumerate(codebooks):
            words = _words(codes[:, q], codebook, reaches[:, q])
            quantized, residual = quantized + words, residual - words
            squares.append(residual.where(reaches[:, q, None], 0).square().sum())
        loss = torch.stack(squares) / (reaches.sum(0) * residual.shape[1]).clamp(min=1)
    frames = _frames(quantized, out_weight, out_bias)
    return frames, quantized, loss, loss.clone(), codes


def _reaches(reached: Tensor, codebooks: Tensor) -> Tensor:
    """Which rows go through which codebooks: (N, Q) bool."""
    return reached[:, None] > torch.arange(len(codebooks), device=reached.device)


def _projected(
    mel: Tensor, codebooks: Tensor, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """(N, D), rounded as a product is; the search has its own, exact one."""
    frames = mel.to(codebooks.dtype)
    return frames if weight is None else F.linear(frames, weight, bias)


def _words(codes: Tensor, codebook: Tensor, reaches: Tensor | None) -> Tensor:
    """Codewords (N, D); zero where a row does not reach the codebook."""
    if reaches is None:
        return F.embedding(codes, codebook)
    return F.embedding(codes.clamp(min=0), codebook).where(reaches[:, None], 0)


def _frames(quantized: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is None:
        return quantized.clone()  # an operator's results may not share memory
    return F.linear(quantized, weight, bias)


@torch.library.register_fake("muomni::rvq_quantize")
def _(
    mel: Tensor, codebooks: Tensor, in_weight: Any, in_bias: Any, out_weight: Any, *rest: Any
) -> tuple[Tensor, ...]:
    n_codebooks, _, dim = codebooks.shape
    width = dim if out_weight is None else out_weight.shape[0]
    codes = mel.new_empty(mel.shape[0], n_codebooks, dtype=torch.int64)
    frames = codebooks.new_empty(mel.shape[0], width)
    losses = codebooks.new_empty(n_codebooks), codebooks.new_empty(n_codebooks)
    return frames, codebooks.new_empty(mel.shape[0], dim), *losses, codes


@operator("rvq_quantize_backward")
def rvq_quantize_backward(
    grad_frames: Tensor,
    grad_quantized: Tensor,
    grad_commitment: Tensor | None,
    grad_codebook: Tensor | None,
    codes: Tensor,
    mel: Tensor,
    codebooks: Tensor,
    in_weight: Tensor | None,
    in_bias: Tensor | None,
    out_weight: Tensor | None,
    reached: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `rvq_quantize`'s first six arguments; an empty tensor for each not needed.

    Straight through: what arrives at the sum of codewords also goes to the projected frame. The
    commitment loss moves the frame, the codebook loss the codewords; both by what a codebook
    leaves, which is recomputed from the codes. A loss that is not used has no gradient (None): a
    zero one times what a codebook leaves of a frame that is not finite would be NaN.
    """
    backend = backend_of("rvq_quantize", mel, codebooks)
    need_mel, need_codebooks, need_in, need_in_bias, need_out, need_out_bias = needs
    grads = [codebooks.new_empty(0) for _ in needs]
    reaches = [None] * len(codebooks) if reached is None else _reaches(reached, codebooks).unbind(1)
    if need_out:
        if reached is None:
            quantized = backend.decode(codes, codebooks, None, None, scratch(codes))
        else:
            quantized = grad_quantized.new_zeros(grad_quantized.shape)
            for q, codebook in enumerate(codebooks):
                quantized += _words(codes[:, q], codebook, reaches[q])
        grads[4] = grad_frames.t() @ quantized
    if need_out_bias:
        grads[5] = grad_frames.sum(0)
    if any(needs[:4]):
        frames = mel.to(codebooks.dtype)
        residual = _projected(mel, codebooks, in_weight, in_bias)
        to_z = grad_frames if out_weight is None else grad_frames @ out_weight  # (N, D)
        to_codewords = to_z + grad_quantized
        to_z = to_z.where(residual.isfinite(), 0)
        if need_codebooks:
            grads[1] = torch.empty_like(codebooks)
        scale = 2 / max(1, residual.numel())
        if reached is not None:  # means over fewer rows
            more = len(mel) / _reaches(reached, codebooks).sum(0).clamp(min=1)
            grad_commitment = None if grad_commitment is None else grad_commitment * more
            grad_codebook = None if grad_codebook is None else grad_codebook * more
        for q, (codebook, reach) in enumerate(zip(codebooks, reaches, strict=True)):
            residual = residual - _words(codes[:, q], codebook, reach)
            left = residual if reach is None else residual.where(reach[:, None], 0)
            if grad_commitment is not None:
                to_z = torch.addcmul(to_z, left, grad_commitment[q], value=scale)
            if need_codebooks:
                rows, column = to_codewords, codes[:, q]
                if grad_codebook is not None:
                    rows = torch.addcmul(rows, left, grad_codebook[q], value=-scale)
                if reach is not None:
                    rows, column = rows.where(reach[:, None], 0), column.clamp(min=0)
                grads[1][q].copy_(backend.code_sums(column, rows, codebook.shape[0]))
        if need_mel:
            grads[0] = (to_z if in_weight is None else to_z @ in_weight).to(mel.dtype)
        if need_in:
            grads[2] = to_z.t() @ frames
        if need_in_bias:
            grads[3] = to_z.sum(0)
    return tuple(grads)  # type: ignore[return-value]  # six, as `needs`


@torch.library.register_fake("muomni::rvq_quantize_backward")
def _(
    grad_frames: Tensor,
    grad_quantized: Tensor,
    grad_commitment: Tensor | None,
    grad_codebook: Tensor | None,
    codes: Tensor,
    mel: Tensor,
    codebooks: Tensor,
    in_weight: Tensor | None,
    in_bias: Tensor | None,
    out_weight: Tensor | None,
    reached: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    shapes = [
        mel.shape,
        codebooks.shape,
        None if in_weight is None else in_weight.shape,
        codebooks.shape[2:],
        None if out_weight is None else out_weight.shape,
        grad_frames.shape[1:],
    ]
    grads = empty_of(codebooks, shapes, needs)
    return grads[0].to(mel.dtype) if needs[0] else grads[0], *grads[1:]


def _save_quantize(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    mel, codebooks, in_weight, in_bias, out_weight, _, reached = inputs
    codes = output[-1]
    ctx.mark_non_differentiable(codes)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(codes, mel, codebooks, in_weight, in_bias, out_weight, reached)


def _quantize_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    # Codes have none, nor has what says which codebooks rows reach.
    needs = list(ctx.needs_input_grad[:-1])
    frames, quantized, *losses = (None if g is None else g.contiguous() for g in grads[:-1])
    _, mel, codebooks, _, _, out_weight, _ = ctx.saved_tensors
    n, dim = len(mel), codebooks.shape[2]
    if frames is None:
        frames = codebooks.new_zeros(n, dim if out_weight is None else len(out_weight))
    if quantized is None:
        quantized = codebooks.new_zeros(n, dim)
    result = rvq_quantize_backward(frames, quantized, *losses, *ctx.saved_tensors, needs)
    return *needed(result, needs), None


torch.library.register_autograd(
    "muomni::rvq_quantize", _quantize_backward, setup_context=_save_quantize
)
torch.library.register_vmap(rvq_quantize.name(), one_by_one(rvq_quantize))
torch.library.register_autograd(rvq_quantize_backward.name(), refusal(rvq_quantize_backward.name()))
