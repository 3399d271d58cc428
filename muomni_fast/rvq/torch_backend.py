"""The quantizer without Triton: blocks of GEMM scores, certified, the doubtful rows searched again.

What runs on a CPU, and on a GPU where no kernel can (there it waits for the device at every block,
so CUDA graphs cannot capture it). A block of rows is scored against a codebook by one GEMM; where
two codes are too close for its rounding (`kernels.rvq.certificate`), the rows are measured by the
reference's exact search. So codes are exact, and no N x K matrix exists.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.rvq.certificate import FLUSH, score_beta
from ..reference.checks import refuse_in_capture
from ..reference.rvq import quantizer as rvq
from ..reference.rvq.checks import code_range_error
from ..reference.rvq.quantizer import search
from ..reference.rvq.search import nearest_code, nearest_in_float64

__all__ = ["code_sums", "decode", "encode", "half_norms_of", "matmul_precision"]

# Scores held at once, 2 MB of float32. Fastest of 2^17 to 2^20 on two cores.
BLOCK_SCORES = 1 << 19
# Numbers in the differences of all frames and codewords. Up to so many, measuring all of them costs
# less than setting up the search by scores; up to the fewest, measuring them in float64 at once
# costs less than in float32 with a second look.
FEW_DIFFERENCES = 1 << 18
FEWEST_DIFFERENCES = 1 << 14
# A row's candidates are added up, code k as SOLE + k: the sum is below 2 SOLE only if there is
# exactly one. Above every codebook_size, and small enough for float32 to count in ones.
SOLE = 1 << 20


def encode(
    mel: Tensor,
    codebooks: Tensor,
    half_norms: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    nonfinite: Tensor,
    *,
    exact: bool = True,
    with_sums: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Codes of frames: arguments and results of `kernels.rvq.encode.rvq_encode`, float64 besides.

    `exact` changes nothing: here a lowest score costs less to certify than to find otherwise.
    """
    if mel.is_cuda:
        refuse_in_capture(mel.device, "rvq_encode: its torch path waits for the GPU at every block")
    n_codebooks, size, dim = codebooks.shape
    precision = matmul_precision(mel.device)
    differences = len(mel) * size * dim
    if differences <= FEW_DIFFERENCES and not with_sums:
        z = _project(mel, weight, bias, codebooks.new_empty(len(mel), dim), precision)
        if not math.isfinite(z.sum()):
            nonfinite += _not_finite(z)
        nearest = nearest_in_float64 if differences <= FEWEST_DIFFERENCES else nearest_code
        return search(z, codebooks, nearest), None
    codes = torch.empty(len(mel), n_codebooks, dtype=torch.int64, device=mel.device)
    sums = codebooks.new_zeros(n_codebooks, dtype=torch.float64) if with_sums else None
    block = max(1, min(len(mel), BLOCK_SCORES // size))
    buffer, words = codebooks.new_empty(2, block, dim)
    if codebooks.dtype == torch.float64:
        certified = None
    else:
        certified = _CertifiedSearch(codebooks, half_norms, block, precision)
    for start in range(0, len(mel), block):
        rows = mel[start : start + block]
        residual = _project(rows, weight, bias, buffer[: len(rows)], precision)
        if certified is None:
            nonfinite += _not_finite(residual)
        for q, codebook in enumerate(codebooks):
            if certified is None:
                index = nearest_code(residual, codebook)
            else:
                index, doubtful = certified.nearest(residual, q)
                if q == 0 and doubtful is not None:
                    nonfinite += _not_finite(residual[doubtful])
            codes[start : start + block, q] = index
            if with_sums or q + 1 < n_codebooks:
                residual -= torch.index_select(codebook, 0, index, out=words[: len(rows)])
            if sums is not None:
                sums[q] += residual.square().sum()
    return codes, None if sums is None else sums.to(codebooks.dtype)


def _not_finite(rows: Tensor) -> Tensor:
    """How many rows hold a NaN or an infinity."""
    return rows.isfinite().all(1).logical_not_().sum()


def half_norms_of(codebooks: Tensor) -> Tensor:
    """||c||^2 / 2 of every codeword, from float64 sums: (Q, K, D) -> (Q, K)."""
    return codebooks.double().square().sum(-1).mul_(0.5).to(codebooks.dtype)


def _project(
    mel: Tensor, weight: Tensor | None, bias: Tensor | None, out: Tensor, precision: str
) -> Tensor:
    """What the first codebook quantizes: (n, n_mels) -> `out` (n, D), in float32 even where torch
    may round products further."""
    if weight is None:
        return out.copy_(mel)
    if out.dtype == torch.float32 and precision != "ieee":
        out.copy_(mel.double() @ weight.double().t())
    else:
        torch.mm(mel.to(out.dtype), weight.t(), out=out)
    return out if bias is None else out.add_(bias)


def matmul_precision(device: torch.device) -> str:
    """What torch may round the operands of a float32 product to: "ieee" (no further), "tf32" or
    "bf16"; the settings are the process's own and are not touched."""
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    for setting in (backend.matmul, backend, torch.backends):
        precision = getattr(setting, "fp32_precision", "none")
        if precision != "none":
            return precision
    return "ieee"


class _CertifiedSearch:
    """The nearest codes of blocks of rows, in buffers made once.

    Args:
        codebooks: (Q, K, D) float32.
        half_norms: (Q, K), what `half_norms_of` gives, or None.
        block: most rows at once.
        precision: of products, what `matmul_precision` says.
    """

    def __init__(
        self, codebooks: Tensor, half_norms: Tensor | None, block: int, precision: str
    ) -> None:
        _, size, dim = codebooks.shape
        self.codebooks = codebooks
        self.half_norms = half_norms_of(codebooks) if half_norms is None else half_norms
        # Twice the bound E is slope * ||x|| + offset. beta applies to the half-norms too, which may
        # sit in the product's own sum; a per mille covers the rounding of the bound itself.
        beta = 1.001 * (score_beta(dim, precision) + 2.0**-23)
        underflow = (dim * FLUSH) ** 0.5  # of a norm
        radii = (2 * self.half_norms.amax(-1)).sqrt_().add_(underflow)  # (Q,)
        self.slopes = 2 * beta * radii
        self.offsets = self.slopes * (radii + underflow) + 4 * dim * FLUSH
        self.scores = codebooks.new_empty(block, size)
        self.names = SOLE + torch.arange(size, device=codebooks.device, dtype=codebooks.dtype)

    def nearest(self, residual: Tensor, q: int) -> tuple[Tensor, Tensor | None]:
        """(n, D) -> codes (n,) int64, and which rows were searched again, if any: (n,) bool."""
        codebook = self.codebooks[q]
        scores = self.scores[: len(residual)]
        torch.mm(residual, codebook.t(), out=scores)
        torch.sub(self.half_norms[q], scores, out=scores)
        limit = torch.linalg.vector_norm(residual, dim=1)
        limit.mul_(self.slopes[q]).add_(self.offsets[q]).add_(scores.amin(1))
        # 1 for every code that could be the nearest, then its name.
        named = scores.le_(limit[:, None]).mul_(self.names).sum(1)
        codes = named.long().sub_(SOLE)
        doubtful = (codes < 0) | (codes >= SOLE)  # NaN has no candidate
        if not doubtful.any():
            return codes, None
        codes[doubtful] = nearest_code(residual[doubtful], codebook)
        return codes, doubtful


def decode(
    codes: Tensor, tables: Tensor, weight: Tensor | None, bias: Tensor | None, invalid: Tensor
) -> Tensor:
    """Frames of codes: arguments and results of `kernels.rvq.decode.rvq_decode`.

    Raises:
        IndexError: a code is out of range, on a CPU; elsewhere it is counted and adds nothing.
    """
    size, dtype = tables.shape[1], tables.dtype
    tables = tables.to(torch.promote_types(dtype, torch.float32))
    valid = None
    if codes.device.type == "cpu":
        if codes.numel():
            low, high = map(int, codes.aminmax())
            if low < 0 or high >= size:
                raise code_range_error(low, high, size)
    else:
        valid = (codes >= 0) & (codes < size)
        invalid += valid.logical_not().sum()
        codes = codes.where(valid, 0)
    total = None
    for q, (table, column) in enumerate(zip(tables.unbind(), codes.unbind(1), strict=False)):
        words = F.embedding(column, table)
        if valid is not None:
            words *= valid[:, q, None]
        total = words if total is None else total.add_(words)
    assert total is not None  # at least one codebook
    if weight is not None:
        total = F.linear(total, weight.to(total.dtype))
    if bias is not None:
        total += bias
    return total.to(dtype)


def code_sums(codes: Tensor, rows: Tensor, codebook_size: int) -> Tensor:
    """Sums of the rows of every code: arguments and results of the kernel's `code_sums`."""
    if codes.device.type == "cpu":
        return rvq.code_sums(codes, rows, codebook_size)
    # Without atomics on a GPU, unlike index_add_; codes out of range go to a row of their own.
    codes = codes.where((codes >= 0) & (codes < codebook_size), codebook_size)
    sums = rows.new_zeros(codebook_size + 1, rows.shape[1], dtype=torch.float64)
    return sums.index_put_((codes,), rows.double(), accumulate=True)[:codebook_size]
