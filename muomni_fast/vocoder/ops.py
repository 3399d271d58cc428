"""The residual blocks of an upsampling level as an operator; a whole generator is in `generator`.

All take and return (B, C, T).
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..operators import Operator, empty_where_needed, filled, one_by_one, operator, refusal
from . import torch_backend, torch_inference
from .backends import InferenceBackend
from .generator import backend_for, preparing
from .orders import apart, size_together, together
from .shapes import Blocks

# As `generator.MANY_FRAMES`, in rows of a level.
MANY_ROWS = 512


@operator("mrf")
def mrf(x: Tensor, tensors: Sequence[Tensor], blocks: str, prepared_for: str | None) -> Tensor:
    """The mean of a level's residual blocks, (B, C, T), without a gradient.

    `tensors` are weights and biases block by block, or what the backend `prepared_for` laid out;
    `blocks` is `Blocks.spec`.
    """
    shape = Blocks.parse(blocks)
    backend: InferenceBackend
    if prepared_for is not None:
        backend = preparing("mrf", prepared_for, x, tensors[0])
        return backend.level(x, tensors, shape, keep=False)[0]
    backend = backend_for("mrf", x, *tensors)
    if backend is torch_backend and x.shape[0] * x.shape[2] >= MANY_ROWS:
        backend = torch_inference
    return backend.level(x, backend.pack_blocks(tensors, shape), shape, keep=False)[0]


@torch.library.register_fake("muomni::mrf")
def _(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


@operator("mrf_train")
def mrf_train(x: Tensor, tensors: Sequence[Tensor], blocks: str) -> tuple[Tensor, list[Tensor]]:
    """`mrf`, and what its backward needs, laid out as the backend that ran has it."""
    backend, shape = backend_for("mrf", x, *tensors), Blocks.parse(blocks)
    return backend.level(x, backend.pack_blocks(tensors, shape), shape, keep=True)


@torch.library.register_fake("muomni::mrf_train")
def _(x: Tensor, tensors: Sequence[Tensor], blocks: str) -> tuple[Tensor, list[Tensor]]:
    backend = backend_for("mrf", x, *tensors)
    return x.new_empty(x.shape), backend.fake_kept(x, x.shape[1], x.shape[2], Blocks.parse(blocks))


@operator("mrf_backward")
def mrf_backward(
    grad: Tensor,
    x: Tensor,
    kept: Sequence[Tensor],
    tensors: Sequence[Tensor],
    blocks: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradient of x, an empty tensor if not needed; and of tensors that need one, `together`."""
    backend = backend_for("mrf", x, *tensors)
    grad_x, grads = backend.level_grad(grad, x, kept, tensors, Blocks.parse(blocks), needs[1:])
    wanted: list[Any] = [*itertools.compress(grads, needs[1:])]
    return [*filled([grad_x], [x], needs[:1]), together(wanted, tensors[0], usual=all(needs[1:]))]


@torch.library.register_fake("muomni::mrf_backward")
def _(grad: Any, x: Tensor, kept: Any, tensors: Sequence[Tensor], blocks: Any, needs: Any) -> Any:
    size = size_together([*itertools.compress(tensors, needs[1:])])
    return [*empty_where_needed([x], needs[:1]), tensors[0].new_empty(size)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Any]) -> None:
    x, tensors, ctx.blocks = inputs
    ctx.mark_non_differentiable(*output[1])
    ctx.set_materialize_grads(False)
    ctx.n_kept, ctx.n_tensors = len(output[1]), len(tensors)
    ctx.save_for_backward(x, *output[1], *tensors)


def _backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return None, [None] * ctx.n_tensors, None
    need_x, need_tensors = ctx.needs_input_grad[:2]
    x, *rest = ctx.saved_tensors
    kept, tensors = rest[: ctx.n_kept], rest[ctx.n_kept :]
    needs = [need_x, *need_tensors]
    arguments = x, kept, tensors, ctx.blocks, needs
    grad_x, packed = mrf_backward(grad.contiguous(), *arguments)
    found = iter(apart(packed, [*itertools.compress(tensors, need_tensors)]))
    grads = [next(found) if need else None for need in need_tensors]
    return grad_x if need_x else None, grads, None


MRF = Operator("mrf", mrf, mrf_train)
torch.library.register_autograd("muomni::mrf_train", _backward, setup_context=_save)
torch.library.register_autograd(mrf_backward.name(), refusal(mrf_backward.name()))
for _op in (mrf, mrf_train):
    torch.library.register_vmap(_op.name(), one_by_one(_op))
