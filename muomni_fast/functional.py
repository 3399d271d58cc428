"""The library's operations as functions, each on the fastest backend that can run it.

Until an operation has a kernel it runs its torch path, the reference; `muomni_fast.doctor()` says
so. Dimension letters: N frames in all, Q codebooks, K codes each, D codebook_dim.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from . import backend
from .reference import hifigan, rvq
from .reference.rvq import RVQOutput

__all__ = ["mrf", "rvq_decode", "rvq_encode", "rvq_quantize"]


def rvq_encode(
    mel: Tensor,
    codebooks: Tensor,
    proj_in_weight: Tensor | None = None,
    proj_in_bias: Tensor | None = None,
    *,
    precision: str = "exact",
    check_finite: bool = False,
) -> Tensor:
    """Codes of mel frames (SoundStream, algorithm 1); no gradient.

    Args:
        mel: (..., n_mels), any float dtype but float8; half precision is upcast to float32.
        codebooks: (Q, K, D).
        proj_in_weight: (D, n_mels), or None when n_mels == D.
        proj_in_bias: (D,).
        precision: "exact", or "fast" to allow a faster, inexact search; no kernel uses it yet.
        check_finite: raise if a frame holds a NaN or an infinity; otherwise it gets code 0.

    Returns:
        (..., Q) int64; the lowest index wins a tie.

    Raises:
        TypeError: `mel` is not floating point, or is float8.
        ValueError: a shape or device does not fit, `precision` is unknown, or `check_finite` found
            something.
        BackendUnavailableError: MUOMNI_FAST_BACKEND=triton, and the kernel cannot run.
    """
    backend.choose("rvq_encode", mel)
    return rvq.rvq_encode(
        mel,
        codebooks,
        proj_in_weight,
        proj_in_bias,
        precision=precision,
        check_finite=check_finite,
    )


def rvq_decode(
    codes: Tensor,
    codebooks: Tensor,
    proj_out_weight: Tensor | None = None,
    proj_out_bias: Tensor | None = None,
) -> Tensor:
    """Mel frames of codes: proj_out(sum of codewords), accumulated in float32.

    Args:
        codes: (..., k) integers, 1 <= k <= Q; fewer than Q is a coarse decoding.
        codebooks: (Q, K, D).
        proj_out_weight: (n_mels, D), or None.
        proj_out_bias: (n_mels,).

    Returns:
        (..., n_mels), the dtype of `codebooks`.

    Raises:
        TypeError: `codes` is not an integer tensor.
        ValueError: the number of codebooks does not fit.
        IndexError: a code is negative or not below K.
        BackendUnavailableError: MUOMNI_FAST_BACKEND=triton, and the kernel cannot run.
    """
    backend.choose("rvq_decode", codes)
    return rvq.rvq_decode(codes, codebooks, proj_out_weight, proj_out_bias)


def rvq_quantize(
    mel: Tensor,
    codebooks: Tensor,
    proj_in_weight: Tensor | None = None,
    proj_in_bias: Tensor | None = None,
    proj_out_weight: Tensor | None = None,
    proj_out_bias: Tensor | None = None,
) -> RVQOutput:
    """Quantize for training: gradients reach both projections (straight through) and every
    codebook.

    Args:
        mel, codebooks, proj_in_weight, proj_in_bias: as in `rvq_encode`.
        proj_out_weight, proj_out_bias: as in `rvq_decode`.

    Returns:
        RVQOutput: mel (..., n_mels) and quantized (..., D) in the dtype of `mel`; codes (..., Q)
        int64; commitment_loss and codebook_loss (Q,) float32.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as in `rvq_encode`.
    """
    backend.choose("rvq_quantize", mel)
    return rvq.rvq_quantize(
        mel,
        codebooks,
        proj_in_weight,
        proj_in_bias,
        proj_out_weight,
        proj_out_bias,
    )


def mrf(x: Tensor, resblocks: Sequence[nn.Module]) -> Tensor:
    """Multi-receptive field fusion (HiFi-GAN section 2.2): the mean over residual blocks.

    Args:
        x: (B, C, T), float.
        resblocks: modules that map (B, C, T) to (B, C, T).

    Returns:
        (B, C, T), the dtype of `x`.

    Raises:
        BackendUnavailableError: MUOMNI_FAST_BACKEND=triton, and the kernel cannot run.
    """
    backend.choose("mrf", x)
    return hifigan.mrf(x, resblocks)
