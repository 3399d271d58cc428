"""What all custom operators share: how they are registered, and what surrounds a call."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_map

library = torch.library.Library("muomni", "DEF")


def operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as an operator of its own, for CPU and CUDA tensors.

    What `torch.library.custom_op` does, less 30 us a call and the second its first call takes.
    """

    def register(function: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(function, mutates_args=())
        library.define(name + schema)
        for key in ("CPU", "CUDA"):
            library.impl(name, torch.no_grad()(function), key)
        return getattr(torch.ops.muomni, name).default

    return register


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


# Where operators run. A meta tensor, say, has no autocast, and asking about it raises.
DEVICES = ("cpu", "cuda")


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
