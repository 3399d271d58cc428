"""What a CUDA graph asks of a step, tested without a GPU: the same operators on the same shapes
every time, tensors that stay where they are, and nothing that waits for the host. That recorded
steps work is in test_gpu.py."""

import dataclasses
from typing import Any

import pytest
import torch
from support.talkers import SENTENCES, tiny
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import muomni_fast
from muomni_fast.reference.talker.generation import Steps
from muomni_fast.talker.steps import KernelSteps, State

pytest.importorskip("triton")  # whose module is replaced, and not run

TEXTS = [text.encode() for text in SENTENCES]
# What copies from the host below the operators, where it cannot be seen.
FROM_HOST = {"new_tensor", "tensor", "as_tensor", "tolist", "to", "cpu", "cuda"}
# Operators that copy from the host, look at values, or whose shapes depend on them.
WAITING = {"_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "_to_copy", "item"}


def fast(n_codebooks: int = 3) -> muomni_fast.Talker:
    plain = tiny(n_codebooks)
    model = muomni_fast.Talker(**plain.config).eval()
    model.load_state_dict(plain.state_dict())
    return model


@pytest.fixture(autouse=True)
def sampled_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps whose kernel is the reference's rules, greedy, in its place."""
    from muomni_fast.kernels.talker import sample as module

    def sample(logits, table, step, end, row, x, max_frames, temperature, seed):
        rules = Steps(tiny(logits.shape[1]), max_frames=max_frames)
        codes, ends = rules.settled(logits.argmax(-1), end, step)
        row.copy_(codes)
        end.copy_(ends)
        places = codes + torch.arange(codes.shape[1]) * (logits.shape[2] + 1)
        x.copy_(table[places].sum(1))

    monkeypatch.setattr(module, "sample", sample)


class Recorded(TorchDispatchMode):
    """What was called, with which shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        self.calls.append((name, *[(tuple(t.shape), t.dtype, t.device.type) for t in tensors]))
        return out


class NothingFromHost(TorchFunctionMode):
    """Refuses what copies from the host, or to it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func.__name__ not in FROM_HOST, func.__name__
        return func(*args, **(kwargs or {}))


def places(state: State) -> list[int]:
    """Where all that a step reads and writes is."""
    tensors = [*vars(state.cache).values(), state.x, state.row, state.end, state.step]
    blocks = [vars(block) for block in state.cache.blocks]
    return [t.data_ptr() for t in tree_leaves((tensors, blocks)) if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("items", [1, 3])
def test_every_step_is_the_same(items):
    steps = KernelSteps(fast(), max_frames=6)
    with torch.no_grad():
        state = steps.state(TEXTS[:items], [0] * items)
        before, first = places(state), None
        for _ in range(steps.most):
            with Recorded() as recorded:
                steps.advance(state)
            first = first or recorded.calls
            assert recorded.calls == first
            assert places(state) == before
    assert len(first) > 20 and state.step.item() == steps.most


def elsewhere(value: Any) -> Any:
    """A state with its tensors on meta."""
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if dataclasses.is_dataclass(value):
        return type(value)(**{name: elsewhere(field) for name, field in vars(value).items()})
    return type(value)(map(elsewhere, value)) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("top_k", [None, 4])
def test_a_step_waits_for_nothing(monkeypatch, top_k):
    """Tensors on meta have no values to be looked at, and any from the host shows beside them. The
    kernel itself launches only."""
    from muomni_fast.kernels.talker import sample as module

    steps = KernelSteps(fast(), temperature=1.0, top_k=top_k, max_frames=6)
    monkeypatch.setattr(module, "sample", lambda **arguments: None)
    with torch.no_grad():
        state = elsewhere(steps.state(TEXTS, [0, 1, 2]))
        with Recorded() as recorded, NothingFromHost():
            steps.advance(state)
    assert len(recorded.calls) > 20
    for name, *tensors in recorded.calls:
        assert name not in WAITING, name
        assert all(device == "meta" for _, _, device in tensors), (name, tensors)


def test_steps_of_a_fixed_shape_say_what_the_reference_says():
    """Of a batch and alone, through ends, in torch's operators alone."""
    for n_codebooks in (1, 3):
        for items in (1, 3):
            rows = [
                torch.stack([torch.cat([row.flatten(), end]) for row, end in said])
                for said in (
                    Steps(tiny(n_codebooks), max_frames=12).rows(TEXTS[:items], [0] * items),
                    KernelSteps(fast(n_codebooks), max_frames=12).rows(TEXTS[:items], [0] * items),
                )
            ]
            assert torch.equal(*rows)


def test_under_autocast_steps_are_the_references():
    """Where half precision is not packed, fixed steps have nothing to go by."""
    said = []
    for kind, talker in ((Steps, tiny()), (KernelSteps, fast())):
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            said.append([row for row, _ in kind(talker, max_frames=6).rows(TEXTS, [0, 0, 0])])
    assert torch.equal(torch.stack(said[0]), torch.stack(said[1]))
