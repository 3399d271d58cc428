"""The few collective operations training needs; every one does nothing in a single process.

Gradients are summed once per pass, after the last micro-batch, as one flat tensor per device and
dtype, so that accumulation, alternating GAN passes and unused parameters need no special care.
"""

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def join(device: torch.device) -> tuple[int, int]:
    """Join the process group that `torchrun` set up, if any; returns rank and world size."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return 0, 1
    if device.type == "cuda":
        torch.cuda.set_device(device)  # collectives of objects use the current device
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return dist.get_rank(), dist.get_world_size()


def leave() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def broadcast(modules: Iterable[nn.Module]) -> None:
    """Give every process the first one's parameters and buffers."""
    if dist.is_initialized():
        for module in modules:
            for value in module.state_dict(keep_vars=True).values():
                dist.broadcast(value.detach(), 0)


def share(value: Any) -> Any:
    """The first process's value, everywhere."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def gather(value: Any) -> list[Any]:
    """Every process's value, everywhere, in their order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def total(values: Tensor) -> Tensor:
    """Sum over processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def sum_gradients(parameters: Iterable[nn.Parameter], share: Tensor) -> None:
    """Replace every gradient by `share` times itself, summed over processes; a missing one counts
    as zero."""
    groups: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            groups.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    for members in groups.values():
        if dist.is_initialized():
            for parameter in members:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        grads = [p.grad for p in members if p.grad is not None]
        for grad in grads:
            grad *= share
        if dist.is_initialized():
            flat = total(torch.cat([grad.flatten() for grad in grads]))
            for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))
