"""What the quantizer's functions refuse: shapes, dtypes, devices and values that do not fit."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import (
    FLOATS,
    listed,
    refuse_in_capture,
    require_float,
    require_integers,
    require_lengths,
    require_same_device,
)
from ..values import require_int

ENCODING = "mel", "codebooks", "proj_in_weight", "proj_in_bias"
DECODING = "codebooks", "proj_out_weight", "proj_out_bias"


def work_dtype(*tensors: Tensor) -> torch.dtype:
    """In which distances are measured and codewords added up."""
    for tensor in tensors:
        if tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def refuse_vmap(*tensors: Tensor) -> None:
    """Raise NotImplementedError under `torch.vmap`: how much is measured again depends on values,
    which vmap's errors say of an operator inside."""
    if any(map(torch._C._functorch.is_batchedtensor, tensors)):
        raise NotImplementedError(
            "RVQ: the reference does not run under torch.vmap, for what it measures again depends "
            "on values; give it all items at once, (..., n_mels), or use muomni_fast.RVQ"
        )


def require_precision(precision: str) -> None:
    """Raise unless `precision` is one that `rvq_encode` knows."""
    if precision not in ("exact", "fast"):
        raise ValueError(f'precision: expected "exact" or "fast", got {precision!r}')


def require_finite_frames(mel: Tensor) -> None:
    """Raise if a frame holds a NaN or an infinity; says how many do."""
    refuse_in_capture(mel.device, "check_finite: waits for the GPU; raise_if_errors counts frames")
    bad = int((~mel.isfinite()).any(-1).sum())
    if bad:
        raise ValueError(f"mel: {bad} of {mel[..., 0].numel()} frames are not finite")


def require_encodable(
    mel: Tensor,
    codebooks: Tensor,
    proj_in_weight: Tensor | None,
    proj_in_bias: Tensor | None,
) -> None:
    """Raise unless these fit `rvq_encode`."""
    _require_floats(ENCODING, (mel, codebooks, proj_in_weight, proj_in_bias))
    _require_books(codebooks)
    dim = codebooks.shape[-1]
    if proj_in_weight is not None and (proj_in_weight.ndim != 2 or proj_in_weight.shape[0] != dim):
        raise ValueError(
            f"proj_in_weight: expected ({dim}, n_mels), got {tuple(proj_in_weight.shape)}"
        )
    n_mels = dim if proj_in_weight is None else proj_in_weight.shape[1]
    if mel.ndim < 1 or mel.shape[-1] != n_mels:
        turned = mel.ndim > 1 and mel.shape[-2] == n_mels
        hint = "; mel.transpose(-1, -2) has it" if turned else ""
        raise ValueError(f"mel: expected (..., {n_mels}), got {tuple(mel.shape)}{hint}")
    if proj_in_bias is not None:
        _require_bias("proj_in", proj_in_weight, proj_in_bias, dim)
    for tensor in (codebooks, proj_in_weight, proj_in_bias):
        if tensor is not None and tensor.device != mel.device:
            require_same_device(
                mel=mel,
                codebooks=codebooks,
                proj_in_weight=proj_in_weight,
                proj_in_bias=proj_in_bias,
            )


def require_alike(name: str, tensors: Sequence[Tensor]) -> Tensor:
    """The first of several tensors; raise unless all have its shape, dtype and device."""
    if not tensors:
        raise ValueError(f"{name}: expected at least one, got none")
    first = tensors[0]
    for index, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name}[{index}]: expected a torch.Tensor, got {type(tensor).__name__}"
            )
        same = tensor.shape == first.shape and tensor.dtype == first.dtype
        if not same or tensor.device != first.device:
            expected = f"{tuple(first.shape)} {first.dtype} on {first.device}, as the first"
            got = f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
            raise ValueError(f"{name}[{index}]: expected {expected}, got {got}")
    return first


def require_decodable(
    codes: Tensor,
    codebooks: Tensor,
    proj_out_weight: Tensor | None,
    proj_out_bias: Tensor | None,
) -> None:
    """Raise unless these fit `rvq_decode`; values are not looked at."""
    require_projection_back(codebooks, proj_out_weight, proj_out_bias)
    require_integers("codes", codes)
    require_same_device(codes=codes, codebooks=codebooks)
    n_codebooks = codebooks.shape[0]
    if codes.ndim < 1 or not 1 <= codes.shape[-1] <= n_codebooks:
        raise ValueError(f"codes: expected (..., 1 to {n_codebooks}), got {tuple(codes.shape)}")


def require_projection_back(
    codebooks: Tensor, proj_out_weight: Tensor | None, proj_out_bias: Tensor | None
) -> None:
    """Raise unless the output projection fits the codebooks."""
    _require_floats(DECODING, (codebooks, proj_out_weight, proj_out_bias))
    _require_books(codebooks)
    dim = codebooks.shape[-1]
    if proj_out_weight is not None and (
        proj_out_weight.ndim != 2 or proj_out_weight.shape[1] != dim
    ):
        raise ValueError(
            f"proj_out_weight: expected (n_mels, {dim}), got {tuple(proj_out_weight.shape)}"
        )
    n_mels = dim if proj_out_weight is None else proj_out_weight.shape[0]
    if proj_out_bias is not None:
        _require_bias("proj_out", proj_out_weight, proj_out_bias, n_mels)
    require_same_device(
        codebooks=codebooks, proj_out_weight=proj_out_weight, proj_out_bias=proj_out_bias
    )


def _require_bias(name: str, weight: Tensor | None, bias: Tensor, size: int) -> None:
    if weight is None:
        raise ValueError(f"{name}_bias: expected None without {name}_weight")
    if bias.shape != (size,):
        raise ValueError(f"{name}_bias: expected ({size},), got {tuple(bias.shape)}")


def _require_floats(names: Iterable[str], values: Iterable[Any]) -> None:
    """`require_float` of several, which may be None, without a call for each that fits."""
    for name, value in zip(names, values, strict=True):
        fits = getattr(value, "dtype", None) in FLOATS and value.layout is torch.strided
        if value is not None and (not fits or value.is_nested):
            require_float(name, value)


def _require_books(codebooks: Tensor) -> None:
    if codebooks.ndim != 3 or codebooks.shape[0] < 1 or codebooks.shape[1] < 2:
        raise ValueError(f"codebooks: expected (Q, K >= 2, D), got {tuple(codebooks.shape)}")


def codebooks_reached(
    mel: Tensor,
    most: int,
    n_codebooks: int | Tensor | Sequence[int] | None,
    lengths: Tensor | Sequence[int] | None,
) -> Tensor | None:
    """How many codebooks each row goes through; None where all rows go through all.

    Args:
        mel: (..., n_mels).
        most: codebooks there are.
        n_codebooks: 1 to `most`, for all rows or for each item of `mel`'s first dimension, (B,).
        lengths: (B,) frames of each item of mel (B, T, n_mels); rows after them go through none.

    Returns:
        (N,) int64 on the mel's device.

    Raises:
        TypeError: one is not of integers.
        ValueError: the number of them does not fit, or a value is out of range; a GPU's values
            are not read, which would wait: less than 1 there is none, more than `most` is all.
    """
    if n_codebooks is None and lengths is None:
        return None
    reached = torch.full(mel.shape[:-1], most, device=mel.device)
    if isinstance(n_codebooks, (Tensor, Sequence)) and not isinstance(n_codebooks, (str, bytes)):
        given = _of_each_item(n_codebooks, mel, most)
        reached = given.reshape(-1, *[1] * (mel.ndim - 2)).expand(mel.shape[:-1])
    elif n_codebooks is not None:
        reached.fill_(require_int("n_codebooks", n_codebooks, 1, most))
    if lengths is not None:
        if mel.ndim != 3:
            raise ValueError(f"lengths: expected mel (B, T, n_mels), got {tuple(mel.shape)}")
        frames = require_lengths(lengths, mel.transpose(1, 2))
        inside = torch.arange(mel.shape[1], device=mel.device) < frames[:, None]  # (B, T)
        reached = reached * inside
    return reached.reshape(-1)


def _of_each_item(n_codebooks: Tensor | Sequence[int], mel: Tensor, most: int) -> Tensor:
    """`n_codebooks` (B,) as int64 on the mel's device, values checked where they can be read."""
    given = n_codebooks
    if not isinstance(given, Tensor):
        refuse_in_capture(mel.device, f"n_codebooks: expected a tensor on {mel.device}, got a list")
        given = listed("n_codebooks", given)
    require_integers("n_codebooks", given)
    if mel.ndim < 2 or given.shape != mel.shape[:1]:
        expected = f"one, or ({mel.shape[0]},)" if mel.ndim > 1 else "one for a single frame"
        raise ValueError(f"n_codebooks: expected {expected}, got {tuple(given.shape)}")
    unread = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if given.device.type == "cpu" and given.numel() and not unread:
        low, high = map(int, given.long().aminmax())
        if low < 1 or high > most:
            raise ValueError(f"n_codebooks: expected 1 to {most}, got {low} to {high}")
    return given.to(mel.device, torch.int64, non_blocking=True)


def without_padding(codes: Tensor, padding_code: int, size: int) -> tuple[Tensor, Tensor]:
    """Codes (..., k) with code 0 where all of a frame's are `padding_code`; where that is, (...).

    Raises:
        TypeError: they are not integers.
        ValueError: `padding_code` is a code; on a CPU, it stands in some codebooks of a frame only.
            On a GPU, where reading codes waits, it stays there, out of range.
    """
    require_integers("codes", codes)
    if codes.ndim < 1:
        raise ValueError("codes: expected (..., k), got ()")
    if 0 <= require_int("padding_code", padding_code, -(1 << 63), (1 << 63) - 1) < size:
        raise ValueError(f"padding_code: expected none of 0 to {size - 1}, got {padding_code}")
    codes = codes.long()  # a narrower number would wrap to a code
    found = codes == padding_code
    padded = found.all(-1)
    if codes.device.type == "cpu" and not torch.compiler.is_compiling():
        partly = int((found.any(-1) & ~padded).sum())
        if partly:
            raise ValueError(f"codes: {partly} frames are padding in some codebooks only")
    return codes.masked_fill(padded[..., None], 0), padded


def code_range_error(low: int, high: int, size: int) -> IndexError:
    """What decoding codes from `low` to `high` raises."""
    return IndexError(f"codes: expected 0 to {size - 1}, got {low} to {high}")
