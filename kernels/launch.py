"""What every launcher asks: the device, its limits, how float32 is multiplied; and how it starts
a kernel."""

import functools
import operator
import os
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel

# The most registers a thread can have in hardware. Where it is not said, the assembler may halve
# it, so that two programs fit a multiprocessor, and then spill what does not fit to memory.
MAX_REGISTERS = 255
# Shared memory a block may have, from which a device can take the sm_90 column of a table.
LARGE_SHARED_MEMORY = 227 * 1024
SMALLEST_TILE = 16  # of a tensor core
MULTIPROCESSORS = {"sm_80": 108, "sm_90": 132}  # where there is no device to ask


@functools.cache
def power_of_two(size: int) -> int:
    """The smallest tile that holds `size`."""
    return max(SMALLEST_TILE, 1 << (size - 1).bit_length())


def ceil_div(size: int, block: int) -> int:
    """Blocks that hold `size`. Triton's own function for this takes 4 us in Python."""
    return -(-size // block)


def row_stride(rows: Tensor) -> int:
    """Elements from a row of (N, D) to the next, one of a layout's few values: a kernel is compiled
    for what divides it, so that rows are loaded in wide pieces. A single row's own stride may be
    any number, and would be compiled for."""
    return rows.stride(0) if len(rows) > 1 else rows.shape[1]


@functools.cache
def architecture(device: torch.device) -> str:
    """The column of the tables for a device; interpreted kernels use the smaller tiles."""
    if device.type != "cuda":
        return "sm_80"
    properties = torch.cuda.get_device_properties(device)
    large = properties.shared_memory_per_block_optin >= LARGE_SHARED_MEMORY
    return "sm_90" if large else "sm_80"


def multiprocessors(device: torch.device) -> int:
    """Of a device, or of its architecture where it is not there."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return MULTIPROCESSORS[architecture(device)]


def interpreted(like: Tensor) -> bool:
    """Whether kernels on this tensor run in Triton's interpreter."""
    return like.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def dot_precision(like: Tensor) -> str:
    """How float32 operands are multiplied: as torch's own convolutions there would be.

    "tf32" where torch may round to it, else three such products, which keep float32's accuracy.
    """
    if like.element_size() == 2:
        return "ieee"
    # What torch's convolutions ask, whichever of its interfaces set it; `cudnn.allow_tf32` raises
    # where it was the newer one.
    if like.device.type == "cuda" and torch.backends.cudnn.conv.fp32_precision == "tf32":
        return "tf32"
    return "tf32x3"


class _Signature(NamedTuple):
    """Of a kernel that is given arguments of some names, and what was compiled for it.

    Attributes:
        fixed: of named arguments, the values of those that it is compiled for.
        others: names of the other arguments, and whether Triton looks at what divides an integer.
        ordered: all that it takes, in its order.
        compiled: kernels by device, fixed values and kinds of the others.
    """

    fixed: Callable[[dict[str, Any]], Any]
    others: list[tuple[str, bool]]
    ordered: Callable[[dict[str, Any]], tuple[Any, ...]]
    compiled: dict[Hashable, CompiledKernel]


_signatures: dict[Hashable, _Signature] = {}


def start(kernel: Any, programs: int, like: Tensor, **arguments: Any) -> None:
    """Launch `kernel[(programs,)](**arguments)` on the device of a tensor.

    At every launch Triton binds all arguments and describes them in text, to look up what it has
    compiled, which takes longer than some kernels. This looks it up by the values themselves. All
    arguments have to be given: those with a default too.
    """
    with torch.cuda.device_of(like):
        if not isinstance(kernel, triton.JITFunction) or _watched(kernel):  # or interpreted
            kernel[(programs,)](**arguments)
            return
        names = kernel.fn, *arguments
        signature = _signatures.get(names)
        if signature is None:
            signature = _signatures[names] = _signature(kernel, arguments)
        kinds = [_kind(arguments[name], divided) for name, divided in signature.others]
        key = like.device, signature.fixed(arguments), *kinds
        compiled = signature.compiled.get(key)
        if compiled is not None:
            compiled[programs, 1, 1](*signature.ordered(arguments))
            return
        compiled = kernel[(programs,)](**arguments)
        if isinstance(compiled, CompiledKernel):
            signature.compiled[key] = compiled


def _watched(kernel: Any) -> bool:
    """Whether a profiler or a debugger is on, for which Triton compiles another kernel."""
    compilation, runtime = triton.knobs.compilation, triton.knobs.runtime
    return bool(
        kernel.pre_run_hooks
        or compilation.instrumentation_mode
        or runtime.debug
        or runtime.add_stages_inspection_hook
    )


def _signature(kernel: Any, arguments: dict[str, Any]) -> _Signature:
    others = {p.name: not p.do_not_specialize for p in kernel.params if not p.is_constexpr}
    fixed = [name for name in arguments if name not in others]  # options like `num_warps` too
    ordered = [param.name for param in kernel.params]
    pick = operator.itemgetter
    return _Signature(pick(*fixed), list(others.items()), pick(*ordered), {})


def _kind(value: Any, divided: bool) -> Hashable:
    """What Triton compiles for, of an argument that is not fixed; of None, a bool and a float it is
    the type alone."""
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    if type(value) is int:
        small = -(2**31) <= value < 2**31
        return (small, value % 16 == 0, value == 1) if divided else small
    return type(value)
