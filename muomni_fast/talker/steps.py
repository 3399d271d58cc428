"""Steps that end in one kernel, and that a GPU repeats as a CUDA graph.

A small model's step is hundreds of launches of microseconds, which take longer to ask for than to
run. Recorded as a graph they are one. For that, a step must have the same shapes every time and
never wait for the host: what changes from step to step are numbers in tensors that stay where they
are, and attention goes over all positions there will be, masked.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..reference.checks import full_precision
from ..reference.talker.generation import Steps

if TYPE_CHECKING:
    from .modules import PackedCache

# Before a graph is recorded: libraries set themselves up, and kernels are compiled.
FIRST_STEPS = 2


@dataclasses.dataclass
class State:
    """What a step reads and leaves to the next, in tensors that stay where they are.

    Attributes:
        cache: of the texts and of what was said.
        x: (B, D), embeddings of the row before, summed over codebooks.
        row: (B, Q) int64, this step's codes, PAD where there are none.
        end: (B,) int64, the step at which each first codebook ended.
        step: (1,) int64, the number of this step.
    """

    cache: "PackedCache"
    x: Tensor
    row: Tensor
    end: Tensor
    step: Tensor


class KernelSteps(Steps):
    """Steps of a `muomni_fast.Talker` where kernels run."""

    @torch.no_grad()
    def rows(
        self, texts: Sequence[bytes], speakers: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Codes step by step; see `reference.talker.generation.Steps.rows`."""
        if torch.is_autocast_enabled(self.random.device.type):  # half precision is not packed
            yield from super().rows(texts, speakers)
            return
        state = self.state(texts, speakers)
        advance: Callable[[], object] = lambda: self.advance(state)
        for step in range(self.most):
            if step == FIRST_STEPS and state.x.device.type == "cuda":
                advance = recorded(advance, state.x.device).replay
            with full_precision(state.x):  # autocast may have begun since
                advance()
            yield state.row.clone(), state.end.clone()

    def state(self, texts: Sequence[bytes], speakers: Sequence[int]) -> State:
        """The state before step 0."""
        cache: Any
        cache, row, end = self.begin(texts, speakers)
        cache.fixed = True
        x = F.embedding(row + cache.offsets, cache.table).sum(1)  # (B, D)
        return State(cache, x, row, end, row.new_zeros(1))

    def advance(self, state: State) -> None:
        """A step, in place."""
        from ..kernels.talker.sample import sample

        talker: Any = self.talker
        sample(
            logits=self.likeliest(talker.through(state.x, state.cache)),
            table=state.cache.table,
            step=state.step,
            end=state.end,
            row=state.row,
            x=state.x,
            max_frames=self.max_frames,
            temperature=self.temperature,
            seed=self.seed,
        )
        state.step += 1


def recorded(run: Callable[[], object], device: torch.device) -> torch.cuda.CUDAGraph:
    """A CUDA graph of what `run` launches, without running it.

    It goes on to read and write the tensors that it does now.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on to use the GPU: only this one's calls must be such as can be recorded.
    with (
        torch.cuda.device(device),
        torch.cuda.graph(graph, capture_error_mode="thread_local"),
    ):
        run()
    return graph
