"""The quantizer without Triton: blocks of certified scores, the doubtful rows measured again.

What runs on a CPU, and on a GPU where no kernel can (there it waits for the device at every block,
so CUDA graphs cannot capture it). Codes are exact, no N x K matrix exists, and a row gets the same
codes whatever surrounds it: its projection is the exact one, rounded once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..reference.checks import refuse_in_capture
from ..reference.rvq import functional as rvq
from ..reference.rvq.checks import code_range_error
from ..reference.rvq.search import nearest_code
from .torch_row import certain_codes
from .torch_search import CertifiedSearch

__all__ = ["code_sums", "decode", "encode", "matmul_precision"]

ROWS_IN_FLOAT64 = 1 << 12  # of a float64 quantizer, at once
# From so many rows on, projecting all in float32, and those in doubt again, is faster than
# projecting all in float64.
ROWS_FOR_COARSE = 1 << 11
MOST_UNDECIDED = 1 / 4  # of a block's rows; after more the next block is projected in float64


class _Float64Search:
    """`CertifiedSearch` of a float64 quantizer: every distance is measured."""

    as_array = staticmethod(Tensor.detach)
    coarse = False
    undecided: Any = None

    def __init__(self, codebooks: Sequence[Tensor], rows: int) -> None:
        self.codebooks = codebooks
        self.block = max(1, min(rows, ROWS_IN_FLOAT64))

    def start(self, rows: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        self.residual = rows.clone() if weight is None else F.linear(rows, weight, bias)

    def nearest(self, q: int) -> tuple[Tensor, Tensor | None]:
        finite = self.residual.isfinite().all(1)
        return nearest_code(self.residual, self.codebooks[q]), finite.logical_not_()

    def subtract(self, codes: Tensor, q: int) -> None:
        self.residual -= self.codebooks[q][codes]

    def finish(self) -> None:
        """It keeps nothing."""


# Rows that are not finite, huge or tiny give NaN, infinities and zeros, as they should.
@np.errstate(over="ignore", under="ignore", invalid="ignore")
def encode(
    mel: Tensor,
    codebooks: Sequence[Tensor],
    table: Tensor | None,
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
    if codebooks[0].ndim == 3:
        codebooks = codebooks[0].unbind()
    n_codebooks = len(codebooks)
    precision = matmul_precision(mel.device)
    codes = torch.empty(len(mel), n_codebooks, dtype=torch.int64, device=mel.device)
    single = len(mel) == 1 and mel.device.type == "cpu" and codebooks[0].dtype == torch.float32
    if single and table is not None and not with_sums:
        certain = certain_codes(mel, codebooks, table, precision, weight, bias)
        if certain is not None:
            codes.numpy()[0] = certain
            return codes, None
    sums = mel.new_zeros(n_codebooks, dtype=torch.float64) if with_sums else None
    search: CertifiedSearch | _Float64Search
    if codebooks[0].dtype == torch.float64:
        search = _Float64Search(codebooks, len(mel))
    else:
        search = CertifiedSearch(codebooks, table, len(mel), precision)
        many = weight is not None and len(mel) >= ROWS_FOR_COARSE
        search.coarse = many and precision == "ieee" and not with_sums
    frames, into, again = mel, codes, None
    while True:
        found, undecided = search.as_array(into), []
        for start in range(0, len(frames), search.block):
            rows = frames[start : start + search.block]
            search.start(rows, weight, bias)
            for q in range(n_codebooks):
                index, broken = search.nearest(q)
                if q == 0 and broken is not None and (count := int(broken.sum())):
                    nonfinite += count
                found[start : start + search.block, q] = index
                if with_sums or q + 1 < n_codebooks:
                    search.subtract(index, q)
                if sums is not None:
                    sums[q] += search.residual.square().sum()
            if search.coarse:
                undecided.append(torch.as_tensor(search.undecided).nonzero()[:, 0] + start)
                search.coarse = len(undecided[-1]) < MOST_UNDECIDED * len(rows)
        if again is not None:
            codes[again] = into
        if not undecided:
            break
        again = torch.cat(undecided)
        frames, into, search.coarse = mel[again], codes[again], False
    search.finish()
    return codes, None if sums is None else sums.to(codebooks[0].dtype)


def matmul_precision(device: torch.device) -> str:
    """What torch may round the operands of a float32 product to: "ieee" (no further), "tf32" or
    "bf16"; the settings are the process's own and are not touched."""
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    for setting in (backend.matmul, backend, torch.backends):
        precision = getattr(setting, "fp32_precision", "none")
        if precision != "none":
            return precision
    return "ieee"


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
