"""What a GPU kernel found wrong with its data, counted on the device and read when asked."""

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from .reference.checks import refuse_in_capture

# Of each device: codes out of range, frames that are not finite; (1,) int32 each. `counters` adds a
# device that is not here yet.
known: dict[torch.device, tuple[Tensor, Tensor]] = {}


class CodeRangeError(IndexError):
    """Codes outside 0 to codebook_size - 1 were decoded on a GPU since the last check."""


def counters(device: torch.device) -> tuple[Tensor, Tensor]:
    """Two counters of a device, (1,) int32: codes out of range, frames that are not finite.

    Raises:
        RuntimeError: the device is first met while a CUDA graph is captured.
    """
    if device not in known:
        refuse_in_capture(
            device,
            f"counters: none are on {device} yet, and a graph's memory must not hold them; "
            "encode or decode there once before, or move an RVQ there",
        )
        # A thread of its own has none of the caller's modes: no graph's memory pool, inference
        # mode, default or fake device gets hold of what outlives them.
        with ThreadPoolExecutor(1) as thread:
            known[device] = thread.submit(_zeros, device).result()
    return known[device]


def begin_counting(device: torch.device) -> None:
    """Count there from now on, so that a CUDA graph captured later need not begin to."""
    # Where CUDA is not in use yet, the tensors on it are fake; a capture must not allocate.
    if device.type != "cuda" or not torch.cuda.is_initialized():
        return
    if not torch.cuda.is_current_stream_capturing():
        counters(device)


def _zeros(device: torch.device) -> tuple[Tensor, Tensor]:
    first, second = (torch.zeros(1, dtype=torch.int32, device=device) for _ in range(2))
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # kernels on any stream come after
    return first, second


def raise_if_errors() -> int:
    """Check what kernels counted on all devices since the last check, and start counting anew.

    Kernels never stop for bad data: a code out of range adds nothing to its frame, a frame with a
    NaN or an infinity gets code 0 in every codebook. On a CPU such a code raises IndexError at
    once. Waits for each GPU that ran a kernel.

    Returns:
        The number of frames encoded that were not finite.

    Raises:
        CodeRangeError: codes out of range were decoded; says how many.
        RuntimeError: a CUDA graph is being captured.
    """
    for device in known:
        refuse_in_capture(device, "raise_if_errors: waits for the GPU; call it after the capture")
    invalid = nonfinite = 0
    for device, (codes, frames) in known.items():
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # kernels on any stream
        invalid, nonfinite = invalid + int(codes), nonfinite + int(frames)
        codes.zero_()
        frames.zero_()
    if invalid:
        raise CodeRangeError(f"{invalid} codes out of range; each was decoded as zero")
    return nonfinite
