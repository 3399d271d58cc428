"""The float64 oracle that codes are checked against, and other yardsticks tests share."""

import torch
from torch import Tensor

from muomni_fast.kernels.certificate import projection_error

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


def many_mismatches(residual: Tensor, codebook: Tensor, codes: Tensor) -> int:
    """`mismatches` for very many rows: only those that float64 products leave in doubt, by a margin
    a million times their rounding, or whose code they contradict, are measured in full."""
    books = codebook.double()
    half_norms = books.square().sum(1) / 2
    wrong = 0
    for start in range(0, len(residual), 1 << 14):
        rows, chosen = residual[start : start + (1 << 14)], codes[start : start + (1 << 14)]
        scores = half_norms - rows.double() @ books.T  # (n, K)
        size = rows.double().square().sum(1) + 2 * half_norms.max()
        near = scores <= (scores.amin(1) + 1e-9 * size)[:, None]
        sure = (near.sum(1) == 1) & (near.int().argmax(1) == chosen)
        wrong += mismatches(rows[~sure], codebook, chosen[~sure])
    return wrong


def unexcused_mismatches(
    mel: Tensor, weight: Tensor, codebooks: Tensor, codes: Tensor, precision: str = "ieee"
) -> int:
    """Mismatches that the rounding of a fused projection (and of float32 residuals) cannot explain.

    With z, its exact projection, a code j is excused where another code k is nearer by no more than
    2 ||dz|| ||c_j - c_k||: the distance by which moving z can change their order.

    Args:
        mel: (N, n_mels).
        weight: (D, n_mels).
        codebooks: (Q, K, D).
        codes: (N, Q).
        precision: of the projection, as `projection_error` takes it.
    """
    magnitude = (mel.double().abs() @ weight.double().abs().T).norm(dim=1)
    slack = projection_error(mel.shape[1], precision) * magnitude  # (N,)
    residual, wrong = mel.double() @ weight.double().T, 0
    for codebook, chosen in zip(codebooks.double(), codes.unbind(1), strict=True):
        for start in range(0, len(mel), ROWS):
            rows, j = residual[start : start + ROWS], chosen[start : start + ROWS]
            distance = (rows[:, None] - codebook).square().sum(-1)  # (rows, K)
            gain = distance.gather(1, j[:, None]) - distance
            apart = (codebook[j][:, None] - codebook).norm(dim=-1)
            excuse = 2 * slack[start : start + ROWS, None] * apart
            wrong += int((gain > excuse + 1e-12 * distance).any(1).sum())
        slack = slack + 2.0**-24 * residual.norm(dim=1)
        residual = residual - codebook[chosen]
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
        count = mismatches if len(residual) <= 1 << 14 else many_mismatches
        wrong += count(residual, codebook, codes[:, stage])
        residual = residual - codebook[codes[:, stage]]
    return wrong


def ulps_apart(rows: Tensor, steps: int = 3) -> Tensor:
    """Rows moved by up to a few units in the last place."""
    for _ in range(steps):
        step = torch.randint(-1, 2, rows.shape)
        up, down = (torch.nextafter(rows, torch.tensor(s * torch.inf)) for s in (1, -1))
        rows = torch.where(step > 0, up, torch.where(step < 0, down, rows))
    return rows


def midpoints(codebook: Tensor, rows: int) -> Tensor:
    """Rows a few ulp off the middle of two codewords: (K, D) -> (rows, D) float32."""
    pairs = torch.randint(len(codebook), (2, rows))
    middle = (codebook[pairs[0]].double() + codebook[pairs[1]].double()) / 2
    return ulps_apart(middle.float())


def snr_db(signal: Tensor, truth: Tensor) -> float:
    """Signal-to-noise ratio of `signal` against `truth`, dB, its mean removed."""
    truth = truth.double()
    noise = (signal.double() - truth).square().sum()
    return float(10 * torch.log10((truth - truth.mean()).square().sum() / noise))
