"""Residual blocks as a function, on the fastest backend that can run them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..reference.checks import require_channels
from ..reference.vocoder import blocks
from .plan import plan_of_blocks


def mrf(x: Tensor, resblocks: Sequence[nn.Module]) -> Tensor:
    """Multi-receptive field fusion (HiFi-GAN section 2.2): the mean over residual blocks.

    On a GPU in one launch for each convolution step of all blocks, or in one for all steps;
    products accumulate in float32, which are TF32's where `torch.backends.cudnn.conv` (or the older
    `cudnn.allow_tf32`) says so. On a CPU by torch's convolutions. Gradients are the same bits every
    time; for them only `x`, activated inner results and running sums are kept.

    Args:
        x: (B, C, T), float.
        resblocks: `ResBlock` modules of one type; any modules that map (B, C, T) to (B, C, T) run
            one by one.

    Returns:
        (B, C, T), the dtype of `x`, or autocast's.

    Raises:
        TypeError: `x` is not floating point, or is float8, or weights have another dtype.
        ValueError: a shape or device does not fit, or there are no blocks.
        NotImplementedError: forward-mode differentiation, or `torch.func` gradients.
        BackendUnavailableError: MUOMNI_FAST_BACKEND=triton, and the kernel cannot run.
        RuntimeError: a second derivative.
    """
    if not resblocks:
        raise ValueError("resblocks: expected at least one")
    plan = plan_of_blocks(resblocks)
    if not plan.fusible:
        return blocks.mrf(x, resblocks)
    first: Any = resblocks[0]
    require_channels("x", x, first.channels)
    return plan.run("x", x)
