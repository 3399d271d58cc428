"""What a GPU kernel found wrong with its data, counted on the device and read when asked."""

import torch
from torch import Tensor

_counters: dict[torch.device, Tensor] = {}


class CodeRangeError(IndexError):
    """Codes outside 0 to codebook_size - 1 were decoded on a GPU since the last check."""


def counters(device: torch.device) -> tuple[Tensor, Tensor]:
    """Two int32 counters of a device: codes out of range, frames that are not finite; (1,) each."""
    if device not in _counters:
        _counters[device] = torch.zeros(2, dtype=torch.int32, device=device)
    invalid, nonfinite = _counters[device].split(1)
    return invalid, nonfinite


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
    for counter in _counters.values():
        codes, frames = counter.tolist()
        counter.zero_()
        invalid, nonfinite = invalid + codes, nonfinite + frames
    if invalid:
        raise CodeRangeError(f"{invalid} codes out of range were decoded, each as nothing")
    return nonfinite
