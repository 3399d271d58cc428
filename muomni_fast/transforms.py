"""What surrounds a call of an operator: autocast, gradients, transforms it cannot go through."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

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
