"""Which implementation runs: a Triton kernel or the torch path.

`MUOMNI_FAST_BACKEND` is `auto` (a kernel where one can run, else torch), `triton` (an error where
it cannot) or `torch`. `doctor` and `explain` say what will run and why; nothing falls back in
silence.
"""

import functools
import importlib.util
import logging
import os
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from . import kernel_cache

log = logging.getLogger("muomni_fast")

VARIABLE = "MUOMNI_FAST_BACKEND"
CHOICES = ("auto", "triton", "torch")
# Every operation a kernel may serve.
OPERATIONS = (
    "rvq_encode",
    "rvq_decode",
    "rvq_quantize",
    "code_sums",
    "mrf",
    "generator",
    "talker_sample",
)
# tf32 and asynchronous copies.
LEAST_CAPABILITY = (8, 0)
LARGEST_DIM = 512  # a row of residuals stays on chip
LARGEST_ROW = 8192  # as does one of logits, or of the Talker's embeddings


class BackendUnavailableError(RuntimeError):
    """The backend that MUOMNI_FAST_BACKEND asks for cannot run here; the message says why."""


def requested() -> str:
    """What MUOMNI_FAST_BACKEND asks for, "auto" by default.

    Raises:
        ValueError: it is set to something else than "auto", "triton" or "torch".
    """
    choice = os.environ.get(VARIABLE) or "auto"
    if choice not in CHOICES:
        raise ValueError(f"{VARIABLE}: expected one of {', '.join(CHOICES)}, got {choice!r}")
    return choice


def obstacle(op: str, *tensors: Tensor) -> str | None:
    """Why no Triton kernel can run `op` on these tensors, or None if one can.

    Raises:
        ValueError: there is no such operation.
    """
    return _obstacle(op, tensors, requested())


def _obstacle(op: str, tensors: Sequence[Tensor], choice: str) -> str | None:
    """`obstacle`, where MUOMNI_FAST_BACKEND asks for `choice`.

    A generator has a hundred tensors: what is the same for all is asked once.
    """
    if op not in OPERATIONS:
        raise ValueError(f"op: expected one of {', '.join(OPERATIONS)}, got {op!r}")
    # Interpreted kernels are for whoever asks for them: they are slow.
    interpreted = choice == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    asked = None
    for place, tensor in enumerate(tensors):
        device = tensor.device
        if device != asked:
            reason, asked = _device_obstacle(device, interpreted), device
            if reason is not None:
                return reason
        if tensor.dtype == torch.float64:
            return "kernels do not take float64"
        if place > 0 and tensor.numel() >= 2**31:
            return f"a table has {tensor.numel()} elements, above 2^31 - 1"
    if op in ("rvq_encode", "rvq_quantize") and len(tensors) > 1:
        dim = tensors[1].shape[-1]  # of the codebooks
        if dim > LARGEST_DIM:
            return f"codebook_dim is {dim}, above {LARGEST_DIM}"
    if op == "talker_sample":
        for tensor in tensors:
            if tensor.dtype != torch.float32:
                return f"codes are drawn from float32, not {tensor.dtype}"
            if tensor.shape[-1] > LARGEST_ROW:
                return f"a row has {tensor.shape[-1]} numbers, above {LARGEST_ROW}"
    if not _installed("triton"):
        return "triton is not installed"
    return interpreter_obstacle() if interpreted else None


def _device_obstacle(device: torch.device, interpreted: bool) -> str | None:
    """Why no kernel can run on tensors there."""
    if device.type != "cuda":
        runs = interpreted and device.type == "cpu"
        return None if runs else "the tensors are not on a CUDA device"
    if torch.version.hip is not None:
        return "kernels are written for NVIDIA GPUs"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return f"the GPU's compute capability is {capability}, below {LEAST_CAPABILITY}"
    return None


def interpreter_obstacle() -> str | None:
    """Why Triton's interpreter cannot run kernels here, or None if it can."""
    triton, numpy = _version("triton"), _version("numpy")
    # Before 3.7 it makes Python numbers of arrays of one element, which numpy has since refused.
    if _release(triton) < (3, 7) and _release(numpy) >= (2, 4):
        return (
            f"the interpreter of Triton {triton} does not work with numpy {numpy}: "
            "it needs numpy below 2.4, or Triton 3.7 or later"
        )
    return None


def _release(version: str | None) -> tuple[int, int]:
    """Major and minor number."""
    major, minor = re.findall(r"\d+", version or "0.0")[:2]
    return int(major), int(minor)


def choose(op: str, *tensors: Tensor) -> str:
    """The backend that runs `op`: "triton" or "torch".

    Raises:
        BackendUnavailableError: "triton" is asked for and cannot run.
    """
    choice = requested()
    if choice == "torch":
        return "torch"
    reason = _obstacle(op, tensors, choice)
    if reason is None:  # all are on one kind of device then
        if tensors and tensors[0].device.type == "cuda" and not torch.compiler.is_compiling():
            _before_the_first_launch()
        return "triton"
    if choice == "triton":
        on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
        if on_cpu and os.environ.get("TRITON_INTERPRET") != "1":
            reason += "; TRITON_INTERPRET=1 interprets kernels"
        raise BackendUnavailableError(f"{VARIABLE}=triton, but {reason}")
    if not torch.compiler.is_compiling() and (op, reason) not in _logged:
        _logged.add((op, reason))
        on_gpu = any(t.device.type == "cuda" for t in tensors)
        log.log(
            logging.WARNING if on_gpu else logging.INFO, "%s runs its torch path: %s", op, reason
        )
    return "torch"


_logged: set[tuple[str, str]] = set()


@functools.cache
def _before_the_first_launch() -> None:
    """Say once what is wrong with launching kernels on a GPU from this process."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        log.warning(
            "TRITON_INTERPRET=1: kernels run in Triton's interpreter, on copies of the CUDA "
            "tensors: slow, and not exact. Unset it to use the GPU"
        )
        return
    folder = kernel_cache.cache_folder()
    hazard = kernel_cache.hazard(folder)
    if hazard is not None:
        log.warning(
            "compiled kernels are loaded from %s, where others could plant code: %s. Give "
            "TRITON_CACHE_DIR a folder of your own, of mode 0700",
            folder,
            hazard,
        )


def explain(op: str, *args: Tensor) -> str:
    """Say in a sentence what will run an operation, and why.

    Args:
        op: "rvq_encode", "rvq_decode", "rvq_quantize", "code_sums", "mrf", "generator" or
            "talker_sample".
        args: tensors in the order of its arguments; without any, float32 on torch's default device.

    Raises:
        ValueError: there is no such operation, or MUOMNI_FAST_BACKEND is none of its values.
    """
    args = args or (torch.empty(0),)
    choice = requested()
    reason = _obstacle(op, args, choice)
    if choice == "torch":
        return f"{op}: torch path, because {VARIABLE}=torch"
    if reason is None:
        return f"{op}: Triton kernel"
    return f"{op}: {'cannot run' if choice == 'triton' else 'torch path'}, because {reason}"


def doctor() -> dict[str, Any]:
    """Describe the installation: versions, devices, what every operation will run on each device,
    and where Triton keeps compiled kernels.

    Returns:
        a JSON-serialisable dict. `kernel_cache` has the `folder`, and the `hazard`: how others
        could plant code in it, or None.
    """
    from . import __version__  # of what is imported; metadata may be another installation's

    devices = ["cpu"]
    names = [platform.processor() or platform.machine()]
    for index in range(torch.cuda.device_count()):
        devices.append(f"cuda:{index}")
        names.append(torch.cuda.get_device_name(index))
    folder = kernel_cache.cache_folder()
    return {
        "muomni_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "devices": dict(zip(devices, names, strict=True)),
        VARIABLE: requested(),
        "kernel_cache": {"folder": str(folder), "hazard": kernel_cache.hazard(folder)},
        "operations": {
            op: {device: explain(op, _probe(device)) for device in devices} for op in OPERATIONS
        },
    }


def _probe(device: str) -> Tensor:
    return torch.empty(0, device=device)


# Asked at every call, and looked up once: a search of sys.path takes longer than some kernels.
@functools.cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@functools.cache
def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
