"""Two processes of one process group."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)

import muomni_fast
from muomni_fast import reference
from muomni_fast.preparable import Preparable


def on_two_ranks(function: Callable[..., Any], folder: Path, *args: Any) -> list[Any]:
    """Run `function(rank, *args)` in two processes joined by gloo, and return both results.

    Args:
        function: of a module in `support`, which a new process can import.
        folder: empty; where the processes meet and leave their results.
    """
    mp.spawn(_rank, (function, folder, *args), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def _rank(rank: int, function: Callable[..., Any], folder: Path, *args: Any) -> None:
    torch.set_num_threads(1)
    store, waiting = f"file://{folder}/store", timedelta(seconds=120)  # for the other one, at most
    dist.init_process_group("gloo", store, timeout=waiting, rank=rank, world_size=2)
    try:
        torch.save(function(rank, *args), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def outputs(modules: list[tuple[nn.Module, Tensor]]) -> list[list[Tensor]]:
    """What modules give for their inputs."""
    with torch.no_grad():
        return [tensors(module.eval()(x)) for module, x in modules]


def tensors(output: object) -> list[Tensor]:
    """The float tensors of whatever a module returns."""
    if isinstance(output, reference.RVQOutput):
        return [output.mel]
    if isinstance(output, Tensor):
        return [output]
    return [tensor for part in output for tensor in tensors(part)]


def trained_and_sent(
    rank: int, modules: list[tuple[nn.Module, Tensor]]
) -> tuple[dict[str, list[Tensor]], list[list[Tensor]]]:
    """What `sharded_weights` and `outputs` give in another process."""
    return sharded_weights(rank), outputs(modules)


def sharded_weights(rank: int) -> dict[str, list[Tensor]]:
    """Whole weights of modules after two steps, sharded by FSDP2 where there are processes, each
    with its half of the batch."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sizes = {"upsample_rates": (4, 2), "upsample_kernel_sizes": (8, 4)}
    sizes |= {"n_mels": 8, "upsample_initial_channel": 16}
    weights = {}
    for lib in (muomni_fast, reference):
        torch.manual_seed(0)
        vocoder = lib.HiFiGANVocoder(**sizes, weight_norm=True)
        loaded = lib.HiFiGANVocoder(**sizes)
        loaded.load_state_dict(vocoder.state_dict())
        modules = {
            "rvq": lib.RVQ(2, 8, 4, 8),
            "vocoder": lib.HiFiGANVocoder(**sizes),
            "folded": lib.HiFiGANVocoder(**sizes, weight_norm=True).fold_weight_norm(),
            "normed": vocoder,
            "loaded": loaded,
            "resblock": lib.ResBlock(8, 3, (1, 2)),
            "mrf": lib.MRF(8, (3, 5), ((1, 2), (1, 3)), "2"),
            "periods": reference.MultiPeriodDiscriminator(channels_scale=0.05),
            "scales": reference.MultiScaleDiscriminator(channels_scale=0.05),
        }
        if lib is muomni_fast:
            modules["prepared"] = lib.HiFiGANVocoder(**sizes).eval().prepare()
        for name, module in modules.items():
            batch = torch.randn(4, 400) if name in ("periods", "scales") else torch.randn(4, 8, 8)
            if dist.is_initialized():
                fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
                batch = batch.chunk(2)[rank]
            optimiser = torch.optim.SGD(module.train().parameters(), 1e-2)
            for _ in range(2):
                optimiser.zero_grad()
                sum(made.square().mean() for made in tensors(module(batch))).backward()
                optimiser.step()
            set_model_state_dict(module, get_model_state_dict(module))  # as a run resumes
            if dist.is_initialized() and isinstance(module, Preparable):
                with pytest.raises(TypeError, match=r"prepare: \S+ is sharded over processes"):
                    module.eval().prepare()
            state = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))
            weights[f"{lib.__name__} {name}"] = list(state.values())
    return weights
