"""What every launcher asks: the device, its limits, and how float32 is multiplied."""

import functools
import os

import torch
from torch import Tensor

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
