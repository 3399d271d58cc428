"""The float64 oracle that codes are checked against, and other yardsticks tests share."""

import torch
from torch import Tensor

from muomni_fast.kernels.rvq.certificate import projection_error

TOLERANCES = {
    # dtype: rtol, atol of float outputs against a float64 computation of the same formula
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1.6e-2),
}
ROWS = 256  # at once, so that N x K x D stays small
MANY = 1 << 14


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


def _undecided(rows: Tensor, codebook: Tensor, codes: Tensor) -> Tensor:
    """Rows (float64) whose code float64 products cannot confirm as the sole nearest by a margin a
    million times their rounding: those to measure in full."""
    books = codebook.double()
    half_norms = books.square().sum(1) / 2
    near = half_norms - rows @ books.T  # (n, K)
    size = rows.square().sum(1) + 2 * half_norms.max()
    near = near <= (near.amin(1) + 1e-9 * size)[:, None]
    return (near.sum(1) != 1) | (near.int().argmax(1) != codes)


def many_mismatches(residual: Tensor, codebook: Tensor, codes: Tensor) -> int:
    """`mismatches` for very many rows."""
    wrong = 0
    for start in range(0, len(residual), MANY):
        rows, chosen = residual[start : start + MANY], codes[start : start + MANY]
        rest = _undecided(rows.double(), codebook, chosen)
        wrong += mismatches(rows[rest], codebook, chosen[rest])
    return wrong


def unexcused_mismatches(
    mel: Tensor,
    weight: Tensor,
    codebooks: Tensor,
    codes: Tensor,
    precision: str = "ieee",
    bias: Tensor | None = None,
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
        bias: (D,), or None.
    """
    wrong = 0
    shift = torch.zeros_like(weight[:, 0]) if bias is None else bias
    shift = shift.double()
    for start in range(0, len(mel), MANY):
        frames, chosen = mel[start : start + MANY].double(), codes[start : start + MANY]
        magnitude = (frames.abs() @ weight.double().abs().T + shift.abs()).norm(dim=1)
        slack = projection_error(mel.shape[1], precision) * magnitude  # (n,)
        residual = frames @ weight.double().T + shift
        for codebook, j in zip(codebooks.double(), chosen.unbind(1), strict=True):
            rest = _undecided(residual, codebook, j)
            wrong += _unexcused(residual[rest], codebook, j[rest], slack[rest])
            slack = slack + 2.0**-24 * residual.norm(dim=1)
            residual = residual - codebook[j]
    return wrong


def _unexcused(rows: Tensor, codebook: Tensor, codes: Tensor, slack: Tensor) -> int:
    wrong = 0
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        distance = (rows[part, None] - codebook).square().sum(-1)  # (n, K)
        gain = distance.gather(1, codes[part, None]) - distance
        apart = (codebook[codes[part]][:, None] - codebook).norm(dim=-1)
        excuse = 2 * slack[part, None] * apart + 1e-12 * distance
        wrong += int((gain > excuse).any(1).sum())
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
        count = mismatches if len(residual) <= MANY else many_mismatches
        wrong += count(residual, codebook, codes[:, stage])
        residual = residual - codebook[codes[:, stage]]
    return wrong


def ulps_apart(rows: Tensor, steps: int = 3) -> Tensor:
    """Rows moved by up to a few units in the last place."""
    for _ in range(steps):
        step = torch.randint(-1, 2, rows.shape, device=rows.device)
        up, down = (torch.nextafter(rows, torch.full_like(rows, s * torch.inf)) for s in (1, -1))
        rows = torch.where(step > 0, up, torch.where(step < 0, down, rows))
    return rows


def midpoints(codebook: Tensor, rows: int) -> Tensor:
    """Rows a few ulp off the middle of two codewords: (K, D) -> (rows, D) float32."""
    pairs = torch.randint(len(codebook), (2, rows), device=codebook.device)
    middle = (codebook[pairs[0]].double() + codebook[pairs[1]].double()) / 2
    return ulps_apart(middle.float())


def crowded(rows: int) -> tuple[Tensor, Tensor]:
    """Rows and a codebook whose words come in fours, closer than low precision can tell."""
    words = torch.randn(16, 32).repeat_interleave(4, 0)
    return torch.randn(rows, 32), words + 1e-5 * torch.randn(64, 32)


def two_near_zero(rows: int) -> tuple[Tensor, Tensor]:
    """Rows between two words so small that float32 squares of differences underflow, far from the
    other words."""
    codebook = torch.randn(32, 16)
    codebook[5:7] *= 1e-22
    return 1e-22 * torch.randn(rows, 16), codebook


def permuted(rows: int) -> tuple[Tensor, Tensor]:
    """Rows equally far from all words, in sums that round differently: the first must win."""
    word = torch.randn(64)
    codebook = torch.stack([word[torch.randperm(64, device=word.device)] for _ in range(32)])
    return torch.randn(rows, 1).expand(-1, 64).contiguous(), codebook


def far_ties(rows: int) -> tuple[Tensor, Tensor]:
    """Rows near zero and words so far away that float64 counts their distances as equal."""
    codebook = torch.full((32, 64), 1e6)
    step = torch.randint(1, 10, (32,)) / 16
    codebook[:, 0] += step
    codebook[:, 1] -= step
    return 1e-3 * torch.randn(rows, 1).expand(-1, 64).contiguous(), codebook


HARD = [crowded, two_near_zero, permuted]


def snr_db(signal: Tensor, truth: Tensor) -> float:
    """Signal-to-noise ratio of `signal` against `truth`, dB, its mean removed."""
    truth = truth.double()
    noise = (signal.double() - truth).square().sum()
    return float(10 * torch.log10((truth - truth.mean()).square().sum() / noise))


def planted_errors(rows: Tensor, codebook: Tensor, table: Tensor, beta: float) -> Tensor:
    """Errors of scores (N, K) float64 that are nearly as large as `beta` allows: those of the
    nearest codes come out too high, those of the second nearest too low."""
    dim = codebook.shape[1]
    radius, size = table.double()[:, dim + 1 : dim + 3].unbind(1)
    two = torch.cdist(rows.double(), codebook.double()).topk(2, largest=False).indices
    signs = torch.zeros(len(rows), len(codebook), dtype=torch.float64)
    signs.scatter_(1, two, torch.tensor([[0.9, -0.9]], dtype=torch.float64).expand(len(rows), 2))
    return signs * beta * (rows.double().norm(dim=1, keepdim=True) * radius + size)


def table_of_rows(rows: Tensor) -> Tensor:
    """What torch's path takes of a codebook's `row_table`; the kernel's half is not read there."""
    return rows.T.reshape(rows.shape).expand(1, 2, *rows.shape)
