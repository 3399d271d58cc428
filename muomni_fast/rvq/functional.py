"""The quantizer's operations as functions, each on the fastest backend that can run it.

They run as operators (`ops`): Triton kernels on a GPU, certified blocks of GEMM scores on a CPU,
both exact. Dimension letters: N frames in all, Q codebooks, K codes each, D codebook_dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.rvq.table import table_width
from ..operators import learning, refuse_transforms
from ..reference.checks import require_float, require_integers, require_same_device
from ..reference.rvq.checks import (
    codebooks_reached,
    require_alike,
    require_decodable,
    require_encodable,
    require_finite_frames,
    require_precision,
    require_projection_back,
    work_dtype,
)
from ..reference.rvq.functional import RVQOutput
from . import ops, quantize_ops

__all__ = ["code_sums", "rvq_decode", "rvq_encode", "rvq_quantize"]


def rvq_encode(
    mel: Tensor,
    codebooks: Tensor | Sequence[Tensor],
    proj_in_weight: Tensor | None = None,
    proj_in_bias: Tensor | None = None,
    *,
    precision: str = "exact",
    check_finite: bool = False,
    table: Tensor | None = None,
) -> Tensor:
    """Codes of mel frames (SoundStream, algorithm 1); no gradient.

    A code is the nearest codeword in real arithmetic, whatever the device: rows that the fast
    scores cannot decide are measured again. Only the rounding of the projection may differ between
    devices (`kernels.rvq.certificate.projection_error` bounds it).

    Args:
        mel: (..., n_mels), any float dtype but float8; half precision is upcast to float32.
        codebooks: (Q, K, D), or Q of (K, D), which a CPU then need not copy.
        proj_in_weight: (D, n_mels), or None when n_mels == D.
        proj_in_bias: (D,).
        precision: "exact", or "fast" to let a GPU take the lowest TF32 score as it is. On a CPU
            both are exact.
        check_finite: raise if a frame holds a NaN or an infinity; otherwise it gets code 0 in every
            codebook and is counted (`muomni_fast.raise_if_errors`).
        table: what `search_table(codebooks, mark_repeats=True)` gives of codebooks (Q, K, D), if at
            hand, to spare computing it; one of other codebooks gives wrong codes.

    Returns:
        (..., Q) int64; the lowest index wins a tie.

    Raises:
        TypeError: `mel` is not floating point, or is float8.
        ValueError: a shape or device does not fit, `precision` is unknown, or `check_finite` found
            something.
        BackendUnavailableError: MUOMNI_FAST_BACKEND=triton, and the kernel cannot run.
    """
    require_precision(precision)
    if isinstance(codebooks, Tensor):
        books, first = [codebooks], codebooks
    else:
        books = list(codebooks)
        first = require_alike("codebooks", books)[None]
    require_encodable(mel, first, proj_in_weight, proj_in_bias)
    if table is not None:
        require_float("table", table)
        n_codebooks, size, dim = first.shape
        n_codebooks *= len(books)  # one of the two is 1
        expected = n_codebooks, 2, size, table_width(dim)
        if table.shape != expected or table.dtype != torch.float32:
            got = f"{tuple(table.shape)} {table.dtype}"
            raise ValueError(f"table: expected {expected} torch.float32, got {got}")
        require_same_device(codebooks=first, table=table)
    if check_finite:
        require_finite_frames(mel)
    dtype = work_dtype(mel, first)
    with torch.no_grad():
        codes = ops.rvq_encode(
            _rows(mel, dtype),
            books if first.dtype == dtype else [book.to(dtype) for book in books],
            table,
            _cast(proj_in_weight, dtype),
            _cast(proj_in_bias, dtype),
            precision == "exact",
        )
    return codes.reshape(*mel.shape[:-1], codes.shape[-1])


def rvq_beam(
    mel: Tensor,
    codebooks: Tensor,
    proj_in_weight: Tensor | None,
    proj_in_bias: Tensor | None,
    greedy: Tensor,
    beam: int,
) -> Tensor:
    """Codes (..., Q) by `reference.rvq.beam.beam_search`, as one operator, from greedy ones."""
    dtype = work_dtype(mel, codebooks)
    weights = (_cast(weight, dtype) for weight in (codebooks, proj_in_weight, proj_in_bias))
    first = greedy.reshape(-1, greedy.shape[-1])
    with torch.no_grad():
        return ops.rvq_beam(_rows(mel, dtype), *weights, first, beam).reshape(greedy.shape)


def nearest_code(x: Tensor, codebook: Tensor) -> Tensor:
    """`reference.nearest_code`, faster: (N, D), (K, D) -> (N,) int64, the exact nearest."""
    return rvq_encode(x, [codebook])[:, 0]


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
        (..., n_mels), the dtype of `codebooks`. Gradients reach codebooks and projection.

    Raises:
        TypeError: `codes` is not an integer tensor.
        ValueError: the number of codebooks does not fit.
        IndexError: a code is negative or not below K, on a CPU; on a GPU it adds nothing to the
            frame and `muomni_fast.raise_if_errors` raises.
        NotImplementedError: forward-mode differentiation, or `torch.func` gradients.
        BackendUnavailableError: MUOMNI_FAST_BACKEND=triton, and the kernel cannot run.
    """
    require_decodable(codes, codebooks, proj_out_weight, proj_out_bias)
    refuse_transforms("rvq_decode", codebooks, proj_out_weight, proj_out_bias)
    dtype = work_dtype(codebooks)
    learns = learning(codebooks, proj_out_weight, proj_out_bias)
    # Half precision codebooks are added up in float32 and only the frame is rounded.
    frames = (ops.rvq_decode if learns else ops.rvq_decode_inference)(
        codes.reshape(-1, codes.shape[-1]).long(),
        codebooks.to(dtype),
        _cast(proj_out_weight, dtype),
        _cast(proj_out_bias, dtype),
    )
    return frames.reshape(*codes.shape[:-1], frames.shape[-1]).to(codebooks.dtype)


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

    Between forward and backward only the input, the codes and the weights are kept. Gradients of
    codebooks are summed by code in a fixed order, so they are the same bits every time.

    Args:
        mel, codebooks, proj_in_weight, proj_in_bias: as in `rvq_encode`.
        proj_out_weight, proj_out_bias: as in `rvq_decode`.
        n_codebooks: how many a row goes through, 1 to Q: an integer, or one for each item of the
            first dimension (B,), as quantizer dropout draws them.
        lengths: (B,) frames of each item of mel (B, T, n_mels). What follows them is padding: it
            changes no value, loss or gradient, whatever it holds.

    Returns:
        RVQOutput: mel (..., n_mels) and quantized (..., D) in the dtype of `mel`; codes (..., Q)
        int64, -1 where a row does not reach a codebook; commitment_loss and codebook_loss (Q,)
        float32, means over the rows that reach it.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as in `rvq_encode`.
        NotImplementedError: forward-mode differentiation, or `torch.func` gradients.
        RuntimeError: a second derivative.
    """
    require_encodable(mel, codebooks, proj_in_weight, proj_in_bias)
    require_projection_back(codebooks, proj_out_weight, proj_out_bias)
    weights = codebooks, proj_in_weight, proj_in_bias, proj_out_weight, proj_out_bias
    refuse_transforms("rvq_quantize", mel, *weights)
    reached = codebooks_reached(mel, len(codebooks), n_codebooks, lengths)
    lead, padding = mel.shape[:-1], None
    if lengths is not None and reached is not None:
        padding = (reached == 0)[:, None]
        mel = mel.masked_fill(padding.reshape(*lead, 1), 0)
    dtype = work_dtype(mel, codebooks)
    out, quantized, commitment, codebook_loss, codes = quantize_ops.rvq_quantize(
        _rows(mel, dtype), *(_cast(weight, dtype) for weight in weights), reached
    )
    if padding is not None:
        out = out.masked_fill(padding, 0)
    return RVQOutput(
        mel=out.reshape(*lead, out.shape[-1]).to(mel.dtype),
        codes=codes.reshape(*lead, codes.shape[-1]),
        quantized=quantized.reshape(*lead, quantized.shape[-1]).to(mel.dtype),
        commitment_loss=commitment,
        codebook_loss=codebook_loss,
    )


def code_sums(codes: Tensor, rows: Tensor, codebook_size: int) -> Tensor:
    """Sum of the rows of every code, the same bits every time: what EMA codebooks average.

    Args:
        codes: (N,) int64, 0 to codebook_size - 1.
        rows: (N, D) float32.
        codebook_size: K.

    Returns:
        (K, D) float64.

    Raises:
        TypeError: `codes` are not integers, or `rows` no floating point numbers.
        ValueError: the shapes or devices do not fit.
        BackendUnavailableError: MUOMNI_FAST_BACKEND=triton, and the kernel cannot run.
    """
    require_integers("codes", codes)
    require_float("rows", rows)
    if codes.ndim != 1 or rows.ndim != 2 or len(codes) != len(rows):
        got = f"{tuple(codes.shape)} and {tuple(rows.shape)}"
        raise ValueError(f"codes, rows: expected (N,) and (N, D), got {got}")
    require_same_device(codes=codes, rows=rows)
    return ops.code_sums(codes, rows, codebook_size)


def _rows(mel: Tensor, dtype: torch.dtype) -> Tensor:
    """(..., n_mels) -> (N, n_mels); half precision stays, as operators upcast it themselves."""
    rows = mel.reshape(-1, mel.shape[-1])
    return rows.double() if dtype == torch.float64 else rows


def _cast(weight: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if weight is None else weight.to(dtype)
