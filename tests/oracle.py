"""The float64 oracle that codes are checked against, and other yardsticks tests share."""

import torch
from torch import Tensor

TOLERANCES = {
    # dtype: rtol, atol of float outputs against a float64 computation of the same formula
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1.6e-2),
}
ROWS = 256  # at once, so that N x K x D stays small


def mismatches(residual: Tensor, codebook: Tensor, codes: Tensor) -> int:
    """Rows of one stage whose code is not the lowest index of the smallest float64 distance.

    Distances that agree to (D + 2) * 2^-52 relative count as tied.
    """
    tie = (codebook.shape[1] + 2) * 2.0**-52
    books = codebook.double()
    wrong = 0
    for start in range(0, len(residual), ROWS):
        rows = residual[start : start + ROWS].double()
        distance = (rows[:, None] - books).square().sum(-1)  # (rows, K)
        least = distance.amin(1, keepdim=True)
        first = (distance <= least * (1 + tie)).int().argmax(1)
        wrong += int((first != codes[start : start + ROWS]).sum())
    return wrong


def stagewise_mismatches(z: Tensor, codebooks: Tensor, codes: Tensor) -> int:
    """Mismatches of all stages, each from the float32 residual the codes themselves left.

    Args:
        z: (N, D) float32, what the first stage quantizes.
        codebooks: (Q, K, D) float32.
        codes: (N, Q).
    """
    residual, wrong = z, 0
    for stage, codebook in enumerate(codebooks):
        wrong += mismatches(residual, codebook, codes[:, stage])
        residual = residual - codebook[codes[:, stage]]
    return wrong


def snr_db(signal: Tensor, truth: Tensor) -> float:
    """Signal-to-noise ratio of `signal` against `truth`, dB, its mean removed."""
    truth = truth.double()
    noise = (signal.double() - truth).square().sum()
    return float(10 * torch.log10((truth - truth.mean()).square().sum() / noise))
