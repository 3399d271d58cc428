"""Every launch of `kernels.launch.start` that takes a kernel it knows, against what Triton would
take: `launches.py`, or `launches.py forget int 0` with a fault.

In a process that does not interpret kernels. Nothing is compiled: Triton's own key of a launch
stands for the kernel. Prints how often one that was known was taken.
"""

import itertools
import random
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import aot  # noqa: E402
import aot_cases  # noqa: E402
import torch  # noqa: E402
import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.compiler import CompiledKernel  # noqa: E402

from muomni_fast.kernels import launch  # noqa: E402

taken = 0


def key_of(kernel: Any, arguments: dict[str, Any]) -> str:
    """What Triton tells a kernel's compiled forms apart by."""
    arguments = {
        **arguments,
        "debug": triton.knobs.runtime.debug,
        "instrumentation_mode": triton.knobs.compilation.instrumentation_mode,
    }
    binder = kernel.device_caches[triton.runtime.driver.active.get_current_device()][-1]
    _, specialization, options = binder(**arguments)
    return f"{specialization} {options}"


class Recorded(CompiledKernel):
    """Stands for what was compiled for a launch; checks the others that take it."""

    def __init__(self, kernel: Any, arguments: dict[str, Any]) -> None:
        self.kernel, self.key = kernel, key_of(kernel, arguments)
        names = [param.name for param in kernel.params]
        self.options = {n: v for n, v in arguments.items() if n not in names}

    def __getitem__(self, grid: Any) -> Any:
        def launched(*values: Any) -> None:
            global taken
            taken += 1
            names = [param.name for param in self.kernel.params]
            arguments = dict(zip(names, values, strict=True)) | self.options
            assert key_of(self.kernel, arguments) == self.key, (arguments, self.key)
            assert len(grid) == 3

        return launched


def run(self: Any, *, grid: Any, warmup: bool, **arguments: Any) -> Any:
    return Recorded(self, arguments)


@triton.jit(do_not_specialize=["length"])
def _toy_kernel(x_ptr, y_ptr, length, stride, factor, SIZES: tl.constexpr, ON: tl.constexpr):
    pass


def toys() -> None:
    """All that a launch can be told apart by, in every combination, in any order."""
    numbers = torch.zeros(64)
    tensors = [numbers, numbers[1:], numbers[4:], numbers.half(), numbers.half()[1:]]
    integers = [1, 2, 15, 16, 17, 32, -16, 2**31 - 1, 2**31, 2**40]
    choices = [tensors, [None, *tensors[:2]], integers, integers, [1.0, 0.5]]
    fixed = [[(1, 2), (1, 3)], [True, False], [4, 8]]
    launches = list(itertools.product(*choices, *fixed))
    random.Random(0).shuffle(launches)
    names = "x_ptr", "y_ptr", "length", "stride", "factor", "SIZES", "ON", "num_warps"
    for values in launches:
        launch.start(_toy_kernel, 1, numbers, **dict(zip(names, values, strict=True)))


def forget(kind: type, place: int) -> None:
    """One of the things that Triton compiles for is not looked at, of arguments of a type."""
    real = launch._kind

    def forgetful(value: Any, divided: bool) -> Any:
        found = real(value, divided)
        if isinstance(value, kind) and isinstance(found, tuple):
            return found[:place] + found[place + 1 :]
        return found

    launch._kind = forgetful


def watched() -> None:
    """A launch that is known, while a profiler is on and after it."""
    numbers = torch.zeros(64)
    values = numbers, None, 5, 1, 0.5, (1, 2), True, 4
    names = "x_ptr", "y_ptr", "length", "stride", "factor", "SIZES", "ON", "num_warps"
    knobs = triton.knobs
    for holder, name in (
        (knobs.compilation, "instrumentation_mode"),
        (knobs.runtime, "debug"),
        (knobs.runtime, "add_stages_inspection_hook"),
    ):
        counts = []
        for value in (None, "on", None):
            if value is not None:
                setattr(holder, name, value)
            before = taken
            launch.start(_toy_kernel, 1, numbers, **dict(zip(names, values, strict=True)))
            counts.append(taken - before)
            if value is not None:
                delattr(holder, name)
        assert counts == [1, 0, 1], (name, counts)


def main() -> None:
    triton.runtime.driver.set_active(aot.AbsentGPU(90))
    launch.architecture = lambda device: "sm_90"
    triton.JITFunction.run = run
    if sys.argv[1:]:
        forget({"int": int, "Tensor": torch.Tensor}[sys.argv[2]], int(sys.argv[3]))
    toys()
    print("toys", taken)
    watched()
    before = taken
    for _ in range(2):
        for case in aot_cases.CASES:
            case.launch()
    print("cases", taken - before)


if __name__ == "__main__":
    main()
