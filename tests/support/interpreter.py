"""Triton's interpreter, made to tell more: rounding as tensor cores do it, and every access."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

# float32 bits that operands keep in tf32, in bfloat16, and in nothing that exists
KEPT_BITS = {"tf32": 0xFFFFE000, "bf16": 0xFFFF0000, "3 bits": 0xFFF00000}


def truncated(values: np.ndarray, precision: str) -> np.ndarray:
    """float32 operands as a tensor core in this precision sees them."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return (bits & np.uint32(KEPT_BITS[precision])).view(np.float32)


def nearest_tf32(values: torch.Tensor) -> torch.Tensor:
    """Finite values rounded to 11 significant bits, ties away from zero, in their dtype."""
    mantissa, exponent = torch.frexp(values.double())
    units = (mantissa.abs() * 2**11 + 0.5).floor().copysign(mantissa)
    return torch.ldexp(units / 2**11, exponent).to(values.dtype)


def round_like_tensor_cores(monkeypatch: pytest.MonkeyPatch, tf32: str = "tf32") -> None:
    """Round the operands of interpreted dot products as their `input_precision` says.

    Args:
        tf32: what a single tf32 product keeps of its operands; another key of KEPT_BITS for worse.
    """
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        a, b = a.data.astype(np.float32), b.data.astype(np.float32)
        name = input_precision.name
        if name == "IEEE":
            product = a @ b
        elif name == "TF32":
            product = truncated(a, tf32) @ truncated(b, tf32)
        else:
            assert name == "TF32x3", name
            a_high, b_high = truncated(a, "tf32"), truncated(b, "tf32")
            a_low, b_low = truncated(a - a_high, "tf32"), truncated(b - b_high, "tf32")
            product = a_low @ b_high + a_high @ b_low + a_high @ b_high
        return TensorHandle(product + d.data, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


Access = tuple[np.ndarray, int]  # addresses of elements, their size in bytes


@dataclasses.dataclass
class Launch:
    """What one launch did to memory.

    Attributes:
        tensors: name -> (first address, one past the last) of every tensor argument.
        reads, writes, atomics: the accesses of each program, in order.
    """

    tensors: dict[str, tuple[int, int]]
    reads: list[list[Access]] = dataclasses.field(default_factory=list)
    writes: list[list[Access]] = dataclasses.field(default_factory=list)
    atomics: list[list[Access]] = dataclasses.field(default_factory=list)

    def check(self, *outputs: str) -> None:
        """Assert that all accesses are within the tensors, that no program touches what another
        wrote, and that every element of the named outputs was written exactly once."""
        for kind in (self.reads, self.writes, self.atomics):
            for program, accesses in enumerate(kind):
                for addresses, _ in accesses:
                    assert self._inside(addresses), f"program {program} leaves its tensors"
        written = [_together(accesses) for accesses in self.writes]
        everything = np.sort(np.concatenate(written))
        assert (np.diff(everything) > 0).all(), "an element was written twice"
        writer = np.concatenate([np.full(len(w), i) for i, w in enumerate(written)])
        writer = writer[np.argsort(np.concatenate(written), kind="stable")]
        for program, accesses in enumerate(self.reads):
            addresses = _together(accesses)
            at = np.searchsorted(everything, addresses).clip(max=len(everything) - 1)
            foreign = (everything[at] == addresses) & (writer[at] != program)
            assert not foreign.any(), f"program {program} reads what another wrote"
        for name in outputs:
            first, last = self.tensors[name]
            mine = everything[(everything >= first) & (everything < last)]
            assert len(mine) and (last - first) % len(mine) == 0, f"{name} has holes"
            step = (last - first) // len(mine)
            assert (mine == np.arange(first, last, step)).all(), f"{name} has holes"

    def _inside(self, addresses: np.ndarray) -> bool:
        inside = np.zeros(len(addresses), dtype=bool)
        for first, last in self.tensors.values():
            inside |= (addresses >= first) & (addresses < last)
        return bool(inside.all())

    def dram_bytes(self) -> int:
        """Distinct bytes touched in the whole launch: what must cross device memory."""
        return _distinct_bytes(sum(self.reads + self.writes, []))

    def l2_bytes(self) -> int:
        """Distinct bytes touched by each program, summed: what must cross the last cache."""
        both = zip(self.reads, self.writes, strict=True)
        return sum(_distinct_bytes(reads + writes) for reads, writes in both)


def _together(accesses: list[Access]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.uint64), *(addresses for addresses, _ in accesses)])


def _distinct_bytes(accesses: list[Access]) -> int:
    sizes = {size for _, size in accesses}
    return sum(
        size * len(np.unique(_together([a for a in accesses if a[1] == size]))) for size in sizes
    )


class _Recorder:
    """Stands in for the interpreter's memory functions."""

    def __init__(self, real: Any, launches: list[Launch]) -> None:
        self._real, self._launches = real, launches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def load(self, pointers, mask, other, dtype):
        self._note("reads", pointers, mask, np.dtype(dtype).itemsize)
        return self._real.load(pointers, mask, other, dtype)

    def store(self, pointers, values, mask):
        self._note("writes", pointers, mask, values.dtype.itemsize)
        return self._real.store(pointers, values, mask)

    def atomic_rmw(self, kind, pointers, values, mask, order):
        self._note("atomics", pointers, mask, values.dtype.itemsize)
        return self._real.atomic_rmw(kind, pointers, values, mask, order)

    def _note(self, kind: str, pointers: np.ndarray, mask: np.ndarray, size: int) -> None:
        addresses = np.asarray(pointers)[np.asarray(mask, dtype=bool)]
        getattr(self._launches[-1], kind)[-1].append((addresses.astype(np.uint64), size))


@contextlib.contextmanager
def watched() -> Iterator[list[Launch]]:
    """Record every launch of an interpreted kernel in the block."""
    from triton.runtime import interpreter

    launches: list[Launch] = []
    with pytest.MonkeyPatch.context() as patch:
        convert = interpreter.GridExecutor._init_args_hst
        set_index = interpreter.InterpreterBuilder.set_grid_idx

        def begin(self, positional, named):
            positional, named = convert(self, positional, named)
            tensors = {}
            for name, value in named.items():
                if isinstance(value, torch.Tensor) and value.numel():
                    last = sum(
                        (n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True)
                    )
                    first = value.data_ptr()
                    tensors[name] = (first, first + (last + 1) * value.element_size())
            launches.append(Launch(tensors))
            return positional, named

        def step(self, x, y, z):
            for kind in (launches[-1].reads, launches[-1].writes, launches[-1].atomics):
                kind.append([])
            return set_index(self, x, y, z)

        patch.setattr(interpreter.GridExecutor, "_init_args_hst", begin)
        patch.setattr(interpreter.InterpreterBuilder, "set_grid_idx", step)
        patch.setattr(interpreter, "_interpreter", _Recorder(interpreter._interpreter, launches))
        yield launches


class Probe:
    """Stands in for the interpreter's memory: notes addresses, reads zeros, writes nothing."""

    def __init__(self, real: object) -> None:
        self.real = real
        self.read: list[np.ndarray] = []
        self.written: list[np.ndarray] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def load(self, pointers, mask, other, dtype):
        self.read.append(pointers[mask])
        return np.full(pointers.shape, self.value, dtype)

    def store(self, pointers, values, mask):
        self.written.append(pointers[mask])

    value = 0  # of everything read


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Probe]]:
    """Make the next launch's single program the one of a given number."""
    from triton.runtime import interpreter

    def start(program: int) -> Probe:
        number = np.array([program], dtype=np.int32)
        handle = interpreter.TensorHandle(number, interpreter.tl.int32)
        found = Probe(interpreter._interpreter)
        builder = interpreter.InterpreterBuilder
        monkeypatch.setattr(builder, "create_get_program_id", lambda self, axis: handle)
        monkeypatch.setattr(interpreter, "_interpreter", found)
        return found

    return start
