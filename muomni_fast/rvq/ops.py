"""The quantizer's operators, `torch.ops.muomni.*`: opaque to `torch.compile`, each with a fake and,
where it has a gradient, an autograd formula.

An operator takes rows (N, ...) and chooses its backend when it runs (`backend.choose`), so a
compiled or exported program still does. Backwards are operators without a formula of their own, so
a second derivative raises instead of being wrong.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import counters
from ..backend import choose
from ..operators import needed, one_by_one, operator, refusal
from ..reference.rvq.beam import beam_search
from ..reference.rvq.quantizer import projected
from . import torch_backend
from .backends import Backend


def _backend(op: str, *tensors: Tensor) -> Backend:
    """What runs `op` on these tensors."""
    if choose(op, *tensors) == "torch":
        return torch_backend
    from . import triton_backend

    return triton_backend


@operator("rvq_encode")
def rvq_encode(
    mel: Tensor,
    codebooks: Sequence[Tensor],
    table: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    exact: bool,
) -> Tensor:
    """(N, n_mels), codebooks, (Q, 2, K, W), (D, n_mels), (D,) -> codes (N, Q) int64.

    Codebooks are one (Q, K, D), or Q of (K, D).
    """
    backend = _backend("rvq_encode", mel, codebooks[0])
    _, nonfinite = counters.known.get(mel.device) or counters.counters(mel.device)
    return backend.encode(mel, codebooks, table, weight, bias, nonfinite, exact=exact)[0]


@torch.library.register_fake("muomni::rvq_encode")
def _(mel: Tensor, codebooks: Sequence[Tensor], *rest: Any) -> Tensor:
    n_codebooks = len(codebooks) if codebooks[0].ndim == 2 else codebooks[0].shape[0]
    return mel.new_empty(mel.shape[0], n_codebooks, dtype=torch.int64)


@operator("rvq_beam")
def rvq_beam(
    mel: Tensor,
    codebooks: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    greedy: Tensor,
    beam: int,
) -> Tensor:
    """(N, n_mels), (Q, K, D), (D, n_mels), (D,), codes (N, Q) -> codes (N, Q), by torch."""
    return beam_search(projected(mel, codebooks, weight, bias), codebooks, greedy, beam)


@torch.library.register_fake("muomni::rvq_beam")
def _(mel: Tensor, codebooks: Any, weight: Any, bias: Any, greedy: Tensor, beam: int) -> Tensor:
    return torch.empty_like(greedy)


def _decode(codes: Tensor, tables: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """(N, q) int64, (Q, K, D), (n_mels, D), (n_mels,) -> frames (N, n_mels), or sums (N, D)."""
    backend = _backend("rvq_decode", codes, tables)
    invalid, _ = counters.known.get(codes.device) or counters.counters(codes.device)
    return backend.decode(codes, tables, weight, bias, invalid)


def _fake_decode(codes: Tensor, tables: Tensor, weight: Tensor | None, bias: Any) -> Tensor:
    width = tables.shape[2] if weight is None else weight.shape[0]
    return tables.new_empty(codes.shape[0], width)


# An autograd formula written in Python costs a call as much as decoding a frame: two operators.
rvq_decode = operator("rvq_decode")(_decode)
rvq_decode_inference = operator("rvq_decode_inference")(_decode)
for _op in (rvq_decode, rvq_decode_inference):
    torch.library.register_fake(_op.name())(_fake_decode)


@operator("rvq_decode_backward")
def rvq_decode_backward(
    grad: Tensor, codes: Tensor, tables: Tensor, weight: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of tables, weight and bias; an empty tensor for each one not needed."""
    backend = _backend("rvq_decode", codes, tables)
    grad_tables, grad_weight, grad_bias = (tables.new_empty(0) for _ in needs)
    if needs[0]:
        to_sums = grad if weight is None else grad @ weight
        grad_tables = tables.new_zeros(tables.shape)
        for q in range(codes.shape[1]):
            sums = backend.code_sums(codes[:, q], to_sums, tables.shape[1])
            grad_tables[q].copy_(sums)
    if needs[1]:
        sums = backend.decode(codes, tables, None, None, _scratch(codes))
        grad_weight = grad.t() @ sums
    if needs[2]:
        grad_bias = grad.sum(0)
    return grad_tables, grad_weight, grad_bias


@torch.library.register_fake("muomni::rvq_decode_backward")
def _(
    grad: Tensor, codes: Tensor, tables: Tensor, weight: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor, ...]:
    shapes = tables.shape, None if weight is None else weight.shape, grad.shape[1:]
    return _empty(grad, shapes, needs)


def _empty(like: Tensor, shapes: Sequence[Any], needs: Sequence[bool]) -> Any:
    """`operators.empty_where_needed`, from shapes."""
    pairs = zip(shapes, needs, strict=True)
    return tuple(like.new_empty(shape if need else 0) for shape, need in pairs)


def _scratch(codes: Tensor) -> Tensor:
    """A counter nobody reads: the forward has counted what is out of range."""
    return codes.new_zeros(1, dtype=torch.int32)


def _save_decode(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    codes, tables, weight, _ = inputs
    ctx.save_for_backward(codes, tables, weight)


def _decode_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    codes, tables, weight = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[1:])
    grads = rvq_decode_backward(grad.contiguous(), codes, tables, weight, needs)
    return None, *needed(grads, needs)


torch.library.register_autograd("muomni::rvq_decode", _decode_backward, setup_context=_save_decode)


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
    backend = _backend("rvq_quantize", mel, codebooks)
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
    backend = _backend("rvq_quantize", mel, codebooks)
    need_mel, need_codebooks, need_in, need_in_bias, need_out, need_out_bias = needs
    grads = [codebooks.new_empty(0) for _ in needs]
    reaches = [None] * len(codebooks) if reached is None else _reaches(reached, codebooks).unbind(1)
    if need_out:
        if reached is None:
            quantized = backend.decode(codes, codebooks, None, None, _scratch(codes))
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
    grads = _empty(codebooks, shapes, needs)
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


@operator("code_sums")
def code_sums(codes: Tensor, rows: Tensor, codebook_size: int) -> Tensor:
    """(N,) int64, (N, D) -> sums of the rows of every code (codebook_size, D) float64."""
    return _backend("code_sums", rows).code_sums(codes, rows, codebook_size)


@torch.library.register_fake("muomni::code_sums")
def _(codes: Tensor, rows: Tensor, codebook_size: int) -> Tensor:
    return rows.new_empty(codebook_size, rows.shape[1], dtype=torch.float64)


for _op in (rvq_encode, rvq_beam, rvq_decode, rvq_decode_inference, rvq_quantize, code_sums):
    torch.library.register_vmap(_op.name(), one_by_one(_op))


for _op in (rvq_decode_backward, rvq_quantize_backward, code_sums):
    torch.library.register_autograd(_op.name(), refusal(_op.name()))
