"""What all custom operators share: how they are registered, and what surrounds a call."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

from .reference.checks import require_same_device

library = torch.library.Library("muomni", "DEF")
# Where operators run. A meta tensor, say, has no autocast, and asking about it raises.
DEVICES = ("cpu", "cuda")


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as an operator of its own, for CPU and CUDA tensors.

    What `torch.library.custom_op` does, less 30 us a call and the second its first call takes.
    Inside there is neither a gradient nor autocast, whatever there is around the call.
    """

    def register(function: Callable[..., Any]) -> Any:
        def on(device: str) -> Callable[..., Any]:
            def alone(*args: Any) -> Any:
                # Most calls for inference have neither, and leaving nothing costs nothing.
                if not torch.is_grad_enabled() and not torch.is_autocast_enabled(device):
                    return function(*args)
                with torch.no_grad(), torch.autocast(device, enabled=False):
                    return function(*args)

            return alone

        schema = torch.library.infer_schema(function, mutates_args=())
        library.define(name + schema)
        for device in DEVICES:
            library.impl(name, on(device), device.upper())
        return getattr(torch.ops.muomni, name).default

    return register


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator over modules' weights, which it takes in a list.

    Attributes:
        name: of the operation, for `backend.choose` and errors.
        inference: takes x, weights, a shape, and the backend that has laid them out, or None.
        training: takes x, weights and a shape; its first result is that of `inference`.
    """

    name: str
    inference: Callable[..., Tensor]
    training: Callable[..., tuple[Tensor, Any]]


def run(
    operator: Operator,
    name: str,
    x: Tensor,
    weights: Sequence[Tensor],
    prepared_for: str | None,
    *shape: Any,
) -> Tensor:
    """Call an operator as autocast would, with a gradient where one may be asked for.

    Args:
        operator: for training or inference.
        name: of `x`, for errors.
        x: the input.
        weights: as torch has them, or laid out for the backend `prepared_for`, through which no
            gradient passes.
        shape: what the operator takes after the weights.
    """
    if prepared_for is None:
        which, who, whose = weights, "a weight", "a weight is"
        refuse_transforms(operator.name, x, *weights)
    else:
        which, who, whose = weights[:1], "weights", "prepared weights are"  # all are of one kind
        refuse_transforms(operator.name, x)
        x = x.detach()
    for weight in which:
        if weight.device != x.device:
            require_same_device(**{name: x, who: weight})
    x, *weights = autocast(x, *weights)
    for weight in weights[: len(which)]:
        if weight.dtype != x.dtype:
            raise TypeError(f"{name} is {x.dtype}, but {whose} {weight.dtype}")
    if prepared_for is None and learning(x, *weights):
        return operator.training(x, weights, *shape)[0]
    return operator.inference(x, weights, *shape, prepared_for)


def _item(arg: Any, dim: Any, item: int) -> Any:
    """One item of a batched argument, or of each tensor in a list."""
    if isinstance(arg, (list, tuple)) and dim is not None:
        return [_item(*pair, item) for pair in zip(arg, dim, strict=True)]
    return arg if dim is None else arg.select(dim, item)


def one_by_one(op: Callable[..., Any]) -> Callable[..., Any]:
    """vmap's rule: run the operator once per item and stack what comes out."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        results = []
        for item in range(info.batch_size):
            pairs = zip(args, in_dims, strict=True)
            results.append(op(*(_item(a, d, item) for a, d in pairs)))
        stacked = tree_map(lambda *same: torch.stack(same), *results)
        return stacked, tree_map(lambda _: 0, stacked)

    return rule


def refusal(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{name} has no derivative")

    return backward


def refuse_transforms(op: str, *tensors: Tensor | None) -> None:
    """Forward-mode differentiation through an operator would silently give zeros, and functional
    gradients (`torch.func.grad`) fail with an error that does not say why.

    Raises:
        NotImplementedError: either is going on.
    """
    if forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        raise NotImplementedError(f"{op}: forward-mode differentiation is not supported")
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        functorch = torch._C._functorch
        if any(i.key() == functorch.TransformType.Grad for i in functorch.get_interpreter_stack()):
            raise NotImplementedError(f"{op}: torch.func gradients are not supported; use backward")


def learning(*tensors: Tensor | None) -> bool:
    """Whether a gradient of any of these may be asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def autocast(*tensors: Tensor) -> list[Tensor]:
    """Cast as autocast does before a convolution, which does not reach an operator by itself."""
    device = tensors[0].device.type
    # Named instead of asked for: torch 2.11 cannot trace `torch.amp.is_autocast_available`.
    if device not in DEVICES or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [t if t.dtype == torch.float64 else t.to(dtype) for t in tensors]


def needed(grads: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """What an operator's backward returned -> None for each gradient not needed."""
    return [grad if need else None for grad, need in zip(grads, needs, strict=True)]


def empty_where_needed(like: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    """Unwritten gradients: of no element where not needed, as an operator cannot return None."""
    return [t.new_empty(t.shape if need else 0) for t, need in zip(like, needs, strict=True)]


def filled(
    grads: Sequence[Tensor | None], like: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor]:
    """Gradients in the dtype of what they belong to, contiguous, of no element where not needed."""
    found = []
    for grad, tensor, need in zip(grads, like, needs, strict=True):
        if need and grad is not None:
            # In one copy, where both change.
            grad = grad.to(tensor.dtype, memory_format=torch.contiguous_format)
            found.append(grad.contiguous())
        else:
            found.append(tensor.new_empty(0))
    return unshared(found)


def unshared(found: Sequence[Tensor], others: Sequence[Tensor] = ()) -> list[Tensor]:
    """Tensors that share no memory with each other or with others, copied where they did: what an
    operator may return."""
    held, result = {t.untyped_storage().data_ptr() for t in others}, []
    for tensor in found:
        if tensor.numel() and tensor.untyped_storage().data_ptr() in held:
            tensor = tensor.clone()
        held.add(tensor.untyped_storage().data_ptr())
        result.append(tensor)
    return result
