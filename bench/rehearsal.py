"""Run what is written for a GPU where there is none, to find what is wrong with its Python.

Tensors that ask for "cuda" are on the CPU, launchers take them as if they were on an H100, and
Triton's own launch path runs: arguments are bound, specialised and named as on the GPU. Then either
compilation is left out ("names"), or kernels are ("launches") compiled for sm_90, loaded and
launched into `stub.c`, a driver that executes nothing. No kernel computes, so figures mean nothing:
they are recorded, not asserted, and what would take long on a CPU is left out.
"""

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

MODE = "MUOMNI_REHEARSAL"  # environment variable: "names" or "launches"
NAMES = "MUOMNI_KERNEL_NAMES"  # and: the file that gathers what would be compiled
CAPABILITY = (9, 0)
PROPERTIES = types.SimpleNamespace(
    name="no GPU: a rehearsal of an H100",
    multi_processor_count=132,
    shared_memory_per_block_optin=227 * 1024,
    total_memory=80 << 30,
)


class OnCpu(TorchFunctionMode):
    """Whatever asks for a CUDA device gets the CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "cuda":
            return args[0]
        named = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        # Nobody looks at the values.
        if func is torch.randn and named != (kwargs or {}):
            func = torch.empty
        if func in (torch.isfinite, torch.Tensor.isfinite):
            return torch.ones((), dtype=torch.bool)
        return func(*map(_on_cpu, args), **named)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("cuda"):
        return "cpu"
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return value


class _Event:
    def __init__(self, **_: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def elapsed_time(self, _: Any) -> float:
        return 1.0


class _Stream(_Event):
    cuda_stream = 0

    def wait_stream(self, _: Any) -> None:
        pass


class _Graph:
    def replay(self) -> None:
        pass


@contextlib.contextmanager
def _nothing(*_: Any, **__: Any) -> Iterator[None]:
    yield


def _compile(function: Any = None, **_: Any) -> Any:
    return function if function is not None else lambda found: found


FAKES: dict[str, Any] = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda *_: None,
    "get_device_name": lambda *_: PROPERTIES.name,
    "get_device_capability": lambda *_: CAPABILITY,
    "get_device_properties": lambda *_: PROPERTIES,
    "mem_get_info": lambda *_: (PROPERTIES.total_memory, PROPERTIES.total_memory),
    "synchronize": lambda *_: None,
    "is_current_stream_capturing": lambda: False,
    "current_stream": lambda *_: _Stream(),
    "Stream": _Stream,
    "Event": _Event,
    "CUDAGraph": _Graph,
    "graph": _nothing,
    "stream": _nothing,
}


def install() -> None:
    """Make this process a rehearsal of the kind that the environment asks for, before anything
    else of this project is imported."""
    if torch.cuda.is_available is FAKES["is_available"]:
        return  # it is one already
    for name, fake in FAKES.items():
        setattr(torch.cuda, name, fake)
    torch.compile = _compile
    # Otherwise memory that no kernel writes would be filled, many GB of it.
    torch.utils.deterministic.fill_uninitialized_memory = False
    OnCpu().__enter__()
    _take_the_gpus_place()
    _leave_out_what_takes_long()


def replace_everywhere(original: Any, other: Any) -> None:
    """Under every name that a module of this project has for it."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None) or ""
        if Path(file).resolve().is_relative_to(Path(__file__).resolve().parent.parent):
            for name, value in list(vars(module).items()):
                if value is original:
                    setattr(module, name, other)


def _take_the_gpus_place() -> None:
    import triton

    import muomni_fast.rvq.triton_backend
    import muomni_fast.vocoder.triton_backend  # noqa: F401  # all launchers
    from muomni_fast import backend
    from muomni_fast.kernels import launch
    from muomni_fast.kernels.rvq.encode import rvq_encode

    driver = _stub_driver() if os.environ[MODE] == "launches" else _NoDriver()
    triton.runtime.driver.set_active(driver)
    if os.environ[MODE] == "names":
        triton.compiler.compile = _gather_name
    replace_everywhere(backend._obstacle, lambda op, tensors, choice: None)
    replace_everywhere(launch.architecture, lambda device: "sm_90")
    replace_everywhere(launch.multiprocessors, lambda device: 132)
    replace_everywhere(launch.interpreted, lambda like: False)

    def encode(*args: Any, **named: Any) -> Any:
        codes, sums = rvq_encode(*args, **named)
        return codes.zero_(), sums  # nothing has written them

    replace_everywhere(rvq_encode, encode)


class _NoDriver:
    """What Triton asks to name a kernel."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], 32)


def _stub_driver() -> Any:
    """Triton's own driver, on `stub.c`."""
    from triton.backends.nvidia import driver

    class Driver(driver.CudaDriver):
        get_current_device = get_current_stream = get_current_target = None

        def __init__(self) -> None:
            self.utils, self.launcher_cls = driver.CudaUtils(), driver.CudaLauncher
            self.get_device_capability = lambda *_: CAPABILITY
            self.set_current_device = lambda device: None
            names = _NoDriver()
            self.get_current_device = names.get_current_device
            self.get_current_stream = names.get_current_stream
            self.get_current_target = names.get_current_target

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

    return Driver()


class _NoKernel:
    """What is launched where nothing was compiled."""

    function = packed_metadata = None

    def launch_metadata(self, *_: Any) -> None:
        pass

    def run(self, *_: Any) -> None:
        pass


def _gather_name(source: Any, target: Any, options: dict[str, Any]) -> _NoKernel:
    """Instead of Triton's `compile`: note what would be compiled."""
    function = source.fn
    named = function.__module__, function.__name__, source.signature, source.constants
    line = pickle.dumps((*named, source.attrs, options)).hex() + "\n"
    # Not a test's own kernel: no other process can import that.
    if NAMES in os.environ and not function.__module__.startswith("tests."):
        file = os.open(os.environ[NAMES], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line.encode())  # at once: others write there too
        os.close(file)
    return _NoKernel()


def compile_named(line: str) -> None:
    """Compile what a line of that file names, into Triton's cache."""
    import triton
    from triton.compiler import ASTSource

    module, name, signature, constants, attributes, options = pickle.loads(bytes.fromhex(line))
    triton.runtime.driver.set_active(_NoDriver())
    kernel = getattr(importlib.import_module(module), name)
    source = ASTSource(kernel, signature, constants, attributes)
    triton.compile(source, target=_NoDriver().get_current_target(), options=options)


def _leave_out_what_takes_long() -> None:
    """References on a CPU, and timing."""
    import gpu_step
    import rvq_problems
    import timing
    from support import vocoder_problems

    import muomni_fast
    from muomni_fast import reference
    from muomni_fast.compat.generators import GeneratorAdapter

    def silent(self: Any, mel: Any, lengths: Any = None) -> Any:
        audio = mel.new_zeros(mel.shape[0], mel.shape[2] * self.hop_length)
        return audio + nothing(mel, *self.parameters())

    def nothing(*tensors: Any) -> Any:
        return sum(0 * tensor.flatten()[0] for tensor in tensors)  # with a gradient

    gpu_step.REPETITIONS, gpu_step.Figures.asserts = 2, False
    timing.milliseconds = lambda run, **_: (run(), 1.0)[1]
    reference.HiFiGANVocoder.forward = silent
    reference.MRF.forward = lambda self, x: x + nothing(*self.parameters())
    reference.RVQ = muomni_fast.RVQ
    rvq_problems.torch_way = lambda mel, *_: mel
    vocoder_problems.snr_db = vocoder_problems.worst_window_db = lambda *_: 0.0
    rvq_problems.Problem.mismatches = lambda self, codes: 0
    GeneratorAdapter._compared = lambda self, trials: ""


def build_stub(folder: Path) -> dict[str, str]:
    """Build `stub.c` with the C compiler; returns the environment that finds it."""
    source = Path(__file__).with_name("stub.c")
    target = folder / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", target, source], check=True)
    return {"LD_LIBRARY_PATH": str(folder), "TRITON_LIBCUDA_PATH": str(folder)}
