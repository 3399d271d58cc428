"""Kernels' results against float64."""

import torch
from torch import Tensor

WORST = {
    # dtype: error of an output or gradient, of the largest magnitude in it
    torch.float32: 1e-5,
    torch.float16: 6e-3,
    torch.bfloat16: 5e-2,  # the interpreter truncates
}


def assert_close(found: Tensor, exact: Tensor) -> None:
    assert found.shape == exact.shape and exact.numel()
    error = (found.double() - exact).abs().max()
    assert error <= WORST[found.dtype] * exact.abs().max(), f"off by {error:.2g}"


def all_close(found: list[Tensor], exact: list[Tensor]) -> None:
    for a, b in zip(found, exact, strict=True):
        assert_close(a, b)


def doubles(*tensors: Tensor) -> list[Tensor]:
    """Float64 copies that collect gradients."""
    return [t.double().requires_grad_() for t in tensors]


def with_gradients(out: Tensor, grad: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.double())]


def turned(x: Tensor) -> Tensor:
    """(B, C, T) to or from (B, T, C)."""
    return x.transpose(1, 2).contiguous()
