"""The quantizer's operations as functions, in plain PyTorch: project, take each codebook's nearest
code, go back.

Zeghidour et al., "SoundStream" (2021), algorithm 1. The search is the plain one that the fast
kernels are checked against; its codes are exact (see `search.nearest_code`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import full_precision, refuse_in_capture
from .checks import (
    code_range_error,
    codebooks_reached,
    refuse_vmap,
    require_decodable,
    require_encodable,
    require_finite_frames,
    require_precision,
    require_projection_back,
    work_dtype,
)
from .projection import project
from .search import nearest_code


@dataclasses.dataclass
class RVQOutput:
    """What `RVQ.forward` returns.

    Attributes:
        mel: (..., n_mels), the reconstruction; zero in padding.
        codes: (..., n_codebooks) int64; -1 where a row does not reach the codebook.
        quantized: (..., codebook_dim), the sum of the chosen codewords.
        commitment_loss: (n_codebooks,), mean (residual - sg(codeword))^2 of each codebook, over the
            rows that reach it.
        codebook_loss: (n_codebooks,), mean (sg(residual) - codeword)^2, over the same.
    """

    mel: Tensor
    codes: Tensor
    quantized: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor


torch.export.register_dataclass(RVQOutput)


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
        codebooks: (n_codebooks, codebook_size, codebook_dim).
        proj_in_weight: (codebook_dim, n_mels), or None when n_mels == codebook_dim.
        proj_in_bias: (codebook_dim,).
        precision: "exact" or "fast"; here both are exact.
        check_finite: raise if any frame holds a NaN or an infinity. Otherwise such a frame gets
            code 0 in every codebook.

    Returns:
        (..., n_codebooks) int64; the lowest index wins a tie.

    Raises:
        TypeError: `mel` is not floating point, or is float8.
        ValueError: a shape does not fit, `precision` is unknown, or `check_finite` found something.
        NotImplementedError: under `torch.vmap`.
    """
    require_precision(precision)
    require_encodable(mel, codebooks, proj_in_weight, proj_in_bias)
    refuse_vmap(mel, codebooks)
    if check_finite:
        require_finite_frames(mel)
    with torch.no_grad(), full_precision(mel):
        return search(*_project(mel, codebooks, proj_in_weight, proj_in_bias))


def search(
    z: Tensor, codebooks: Tensor, nearest: Callable[[Tensor, Tensor], Tensor] = nearest_code
) -> Tensor:
    """Greedy codes of projected frames: (..., D) and (Q, K, D) -> (..., Q) int64."""
    residual = z.reshape(-1, z.shape[-1])  # (N, D)
    books = codebooks.unbind()
    codes = [nearest(residual, books[0])]
    for previous, codebook in pairwise(books):
        residual = residual - previous[codes[-1]]
        codes.append(nearest(residual, codebook))
    return torch.stack(codes, 1).reshape(*z.shape[:-1], len(codes))


def rvq_decode(
    codes: Tensor,
    codebooks: Tensor,
    proj_out_weight: Tensor | None = None,
    proj_out_bias: Tensor | None = None,
) -> Tensor:
    """Mel frames of codes: proj_out(sum of codewords), accumulated in float32.

    Args:
        codes: (..., k) integers with 1 <= k <= n_codebooks; fewer than all is a coarse decoding.
        codebooks: (n_codebooks, codebook_size, codebook_dim).
        proj_out_weight: (n_mels, codebook_dim), or None.
        proj_out_bias: (n_mels,).

    Returns:
        (..., n_mels), the dtype of `codebooks`.

    Raises:
        TypeError: `codes` is not an integer tensor.
        ValueError: the number of codebooks does not fit.
        IndexError: a code is negative or not below codebook_size.
    """
    require_decodable(codes, codebooks, proj_out_weight, proj_out_bias)
    quantized = _sum_codewords(codes, codebooks)
    with full_precision(quantized):
        return _linear(quantized, proj_out_weight, proj_out_bias).to(codebooks.dtype)


def rvq_quantize(
    mel: Tensor,
    codebooks: Tensor,
    proj_in_weight: Tensor | None = None,
    proj_in_bias: Tensor | None = None,
    proj_out_weight: Tensor | None = None,
    proj_out_bias: Tensor | None = None,
    *,
    n_codebooks: int | Tensor | Sequence[int] | None = None,
    lengths: Tensor | Sequence[int] | None = None,
) -> RVQOutput:
    """Quantize for training: gradients reach both projections (straight through) and every
    codebook.

    Each residual is the previous one less the detached codeword, never taken from the
    straight-through output, which would cancel the commitment gradient of later codebooks.
    Arguments and errors as in `rvq_encode` and `rvq_decode`, and besides:

    Args:
        n_codebooks: how many a row goes through, 1 to all: an integer, or one for each item of the
            first dimension (B,). Random ones, "quantizer dropout" (SoundStream, section III-C),
            make every prefix of the codebooks a codec of its own.
        lengths: (B,) frames of each item of mel (B, T, n_mels). What follows them is padding: it
            changes no value, loss or gradient, whatever it holds.

    Returns:
        RVQOutput; float outputs have the dtype of `mel`, losses are float32 (or float64) and
        accumulated so.
    """
    require_encodable(mel, codebooks, proj_in_weight, proj_in_bias)
    require_projection_back(codebooks, proj_out_weight, proj_out_bias)
    refuse_vmap(mel, codebooks)
    reached = codebooks_reached(mel, len(codebooks), n_codebooks, lengths)
    padding = None
    if lengths is not None and reached is not None:
        padding = (reached == 0).reshape(*mel.shape[:-1], 1)
        mel = mel.masked_fill(padding, 0)
    with full_precision(mel):
        z, books = _project(mel, codebooks, proj_in_weight, proj_in_bias)  # (..., D)
        codes = search(z.detach(), books.detach())
        residual, commitment, codebook_loss = z, [], []
        quantized = torch.zeros_like(z)
        for q, codebook in enumerate(books):
            codeword = F.embedding(codes[..., q], codebook)
            reaches = None
            if reached is not None:
                reaches = (reached > q).reshape(*z.shape[:-1], 1)
                codeword = codeword.where(reaches, 0)
            commitment.append(_mean_square(residual - codeword.detach(), reaches))
            codebook_loss.append(_mean_square(codeword - residual.detach(), reaches))
            residual = residual - codeword.detach()
            quantized = quantized + codeword
        # In this order the value is exactly `quantized`; (quantized + z) - z is not. A frame that
        # is not finite has codes as well, and so a value.
        straight = (z - z.detach()).nan_to_num()
        out = _linear(quantized + straight, proj_out_weight, proj_out_bias)
    if reached is not None:
        later = torch.arange(len(codebooks), device=z.device) >= reached[:, None]  # (N, Q)
        codes = codes.masked_fill(later.reshape(codes.shape), -1)
    if padding is not None:
        out = out.masked_fill(padding, 0)
    return RVQOutput(
        mel=out.to(mel.dtype),
        codes=codes,
        quantized=quantized.to(mel.dtype),
        commitment_loss=torch.stack(commitment),
        codebook_loss=torch.stack(codebook_loss),
    )


def _mean_square(difference: Tensor, rows: Tensor | None) -> Tensor:
    """Of all rows (..., D), or those where `rows` (..., 1) is true; of none it is zero."""
    if rows is None:
        return difference.square().sum() / max(1, difference.numel())
    count = (rows.sum() * difference.shape[-1]).clamp(min=1)
    return difference.where(rows, 0).square().sum() / count


def _project(
    mel: Tensor, codebooks: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What the first codebook quantizes, and the codebooks, in the dtype of the work; in float32 on
    a CPU each number is the exact one, rounded once."""
    dtype = work_dtype(mel, codebooks)
    books = codebooks.to(dtype)
    if weight is None or dtype != torch.float32 or mel.device.type != "cpu":
        return _linear(mel.to(dtype), weight, bias), books
    shift = None if bias is None else bias.detach().float()
    exact = project(mel.detach().reshape(-1, mel.shape[-1]), weight.detach().float(), shift)
    exact = exact.reshape(*mel.shape[:-1], exact.shape[-1])
    if not torch.is_grad_enabled():
        return exact, books
    # With the gradient of the product, which may overflow on the way where the exact one does not.
    z = _linear(mel.to(dtype), weight, bias)
    return exact + (z - z.detach()).nan_to_num(), books


def projected(mel: Tensor, codebooks: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """What the first codebook quantizes: (..., n_mels) -> (..., D), see `RVQ.project`."""
    with full_precision(mel):
        return _project(mel, codebooks, weight, bias)[0]


def _linear(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """A projection in the dtype of `x`, or none at all."""
    if weight is None:
        return x
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _sum_codewords(codes: Tensor, codebooks: Tensor) -> Tensor:
    refuse_in_capture(codes.device, "codes: the reference reads their range, which waits")
    size = codebooks.shape[1]
    codes = codes.long()
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
        raise code_range_error(int(codes.min()), int(codes.max()), size)
    books = codebooks.to(work_dtype(codebooks))
    quantized = F.embedding(codes[..., 0], books[0])
    for q in range(1, codes.shape[-1]):
        quantized = quantized + F.embedding(codes[..., q], books[q])
    return quantized


def code_sums(codes: Tensor, rows: Tensor, codebook_size: int) -> Tensor:
    """Sum of the rows of every code: (N,), (N, D) -> (K, D) float64."""
    sums = torch.zeros(codebook_size, rows.shape[1], dtype=torch.float64, device=rows.device)
    return sums.index_add_(0, codes, rows.double())
