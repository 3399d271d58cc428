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

from .. import counters
from ..backend import choose
from ..operators import needed, one_by_one, operator, refusal
from ..reference.rvq.beam import beam_search
from ..reference.rvq.functional import projected
from . import torch_backend
from .backends import Backend


def backend_of(op: str, *tensors: Tensor) -> Backend:
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
    backend = backend_of("rvq_encode", mel, codebooks[0])
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
    backend = backend_of("rvq_decode", codes, tables)
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
    backend = backend_of("rvq_decode", codes, tables)
    grad_tables, grad_weight, grad_bias = (tables.new_empty(0) for _ in needs)
    if needs[0]:
        to_sums = grad if weight is None else grad @ weight
        grad_tables = tables.new_zeros(tables.shape)
        for q in range(codes.shape[1]):
            sums = backend.code_sums(codes[:, q], to_sums, tables.shape[1])
            grad_tables[q].copy_(sums)
    if needs[1]:
        sums = backend.decode(codes, tables, None, None, scratch(codes))
        grad_weight = grad.t() @ sums
    if needs[2]:
        grad_bias = grad.sum(0)
    return grad_tables, grad_weight, grad_bias


@torch.library.register_fake("muomni::rvq_decode_backward")
def _(
    grad: Tensor, codes: Tensor, tables: Tensor, weight: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor, ...]:
    shapes = tables.shape, None if weight is None else weight.shape, grad.shape[1:]
    return empty_of(grad, shapes, needs)


def empty_of(like: Tensor, shapes: Sequence[Any], needs: Sequence[bool]) -> Any:
    """`operators.empty_where_needed`, from shapes."""
    pairs = zip(shapes, needs, strict=True)
    return tuple(like.new_empty(shape if need else 0) for shape, need in pairs)


def scratch(codes: Tensor) -> Tensor:
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


@operator("code_sums")
def code_sums(codes: Tensor, rows: Tensor, codebook_size: int) -> Tensor:
    """(N,) int64, (N, D) -> sums of the rows of every code (codebook_size, D) float64."""
    return backend_of("code_sums", rows).code_sums(codes, rows, codebook_size)


@torch.library.register_fake("muomni::code_sums")
def _(codes: Tensor, rows: Tensor, codebook_size: int) -> Tensor:
    return rows.new_empty(codebook_size, rows.shape[1], dtype=torch.float64)


for _op in (rvq_encode, rvq_beam, rvq_decode, rvq_decode_inference, code_sums):
    torch.library.register_vmap(_op.name(), one_by_one(_op))


for _op in (rvq_decode_backward, code_sums):
    torch.library.register_autograd(_op.name(), refusal(_op.name()))
