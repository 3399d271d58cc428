"""Two processes of one process group."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


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
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        torch.save(function(rank, *args), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()
