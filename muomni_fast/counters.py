"""What a GPU kernel found wrong with its data, counted on the device and read when asked."""

import torch
from torch import Tensor

# Of each device: codes out of range, frames that are not finite; (1,) int32 each.
_counters: dict[torch.device, tuple[Tensor, Tensor]] = {}


class CodeRangeError(IndexError):
    """Codes outside 0 to codebook_size - 1 were decoded on a GPU since the last check."""


def counters(device: torch.device) -> tuple[Tensor, Tensor]:
    """Two counters of a device, (1,) int32: codes out of range, frames that are not finite."""
    if device not in _counters:
        first, second = (torch.zeros(1, dtype=torch.int32, device=device) for _ in range(2))
        _counters[device] = first, second
    return _counters[device]


def raise_if_errors() -> int:
    """Check what kernels counted on all devices since the last check, and start counting anew.

    Kernels never stop for bad data: a code out of range adds nothing to its frame, a frame with a
    NaN or an infinity gets code 0 at every stage. On a CPU such a code raises IndexError at once.
    Waits for each GPU that ran a kernel.

    Returns:
        The number of frames encoded that were not finite.

    Raises:
        CodeRangeError: codes out of range were decoded; says how many.
    """
    invalid = nonfinite = 0
    for device, (codes, frames) in _counters.items():
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # kernels on any stream
        invalid, nonfinite = invalid + int(codes), nonfinite + int(frames)
        codes.zero_()
        frames.zero_()
    if invalid:
        raise CodeRangeError(f"{invalid} codes out of range were decoded, each as nothing")
    return nonfinite
