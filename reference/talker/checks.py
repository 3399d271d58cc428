"""Checks of what the Talker is given, and the digest by which it knows its quantizer."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..checks import require_integers
from ..values import MOST_CHANNELS, require_text, shown

if TYPE_CHECKING:
    from .model import Talker


def quantizer_digest(rvq: nn.Module, frames_per_code: int, pooling: str = "mean") -> str:
    """What a Talker's codes depend on, as sha256: the quantizer's settings, its weights in float32,
    and how frames become codes.

    Args:
        rvq: with its constructor's arguments as `config`.
        frames_per_code: mel frames of a code.
        pooling: how they are joined.
    """
    settings = [rvq.config, frames_per_code, pooling]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, value in sorted(rvq.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def require_talker(talker: "Talker", rvq: nn.Module, frames_per_code: int, pooling: str) -> None:
    """Raise ValueError if a Talker speaks other codes than this quantizer's.

    One that knows of no quantizer (`Talker.quantizer` is "") is compared by the codes' shape only.
    """
    for name in ("n_codebooks", "codebook_size"):
        if getattr(talker, name) != getattr(rvq, name):
            raise ValueError(
                f"talker: has {name} = {getattr(talker, name)}, but the quantizer has "
                f"{getattr(rvq, name)}"
            )
    if not talker.quantizer:
        return
    digest = quantizer_digest(rvq, frames_per_code, pooling)
    if talker.quantizer != digest:
        raise ValueError(
            f"talker: expected the quantizer it was trained with, {talker.quantizer[:12]}..., "
            f"got {digest[:12]}..."
        )


def require_digest(name: str, value: Any) -> str:
    """A sha256 in hexadecimal digits, or ""."""
    if require_text(name, value) and not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(
            f'{name}: expected a sha256 in hexadecimal digits or "", got {shown(value)}'
        )
    return value


def require_names(name: str, values: Any) -> tuple[str, ...]:
    """Different names, none of them "", at most MOST_CHANNELS."""
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise TypeError(f"{name}: expected a list or tuple of names, got {shown(values)}")
    if len(values) > MOST_CHANNELS:
        raise ValueError(f"{name}: expected at most {MOST_CHANNELS:,}, got {len(values):,}")
    for value in values:
        if not require_text(name, value):
            raise ValueError(f'{name}: expected names, got ""')
    if len(set(values)) < len(values):
        raise ValueError(f"{name}: expected different names, got {shown(list(values))}")
    return tuple(values)


def speaker_ids(known: Sequence[str], speakers: Any, n: int) -> Tensor:
    """Ids of n items' speakers: see `Talker.speaker_ids`."""
    if speakers is None or isinstance(speakers, str):
        speakers = [speakers] * n
    if not isinstance(speakers, Sequence):
        raise TypeError(f"speakers: expected names, got {shown(speakers)}")
    if len(speakers) != n:
        raise ValueError(f"speakers: expected one for each of {n} texts, got {len(speakers)}")
    numbers = {None: 0} | {name: i for i, name in enumerate(known, start=1)}
    for speaker in speakers:
        if speaker is not None:
            require_text("speakers", speaker)
        if speaker not in numbers:
            raise ValueError(
                f"speakers: expected None or one of {shown(list(known))}, got {shown(speaker)}"
            )
    return torch.tensor([numbers[speaker] for speaker in speakers], device="cpu", dtype=torch.int64)


def require_batch(
    talker: "Talker",
    text: Tensor,
    text_lengths: Tensor,
    codes: Tensor,
    lengths: Tensor,
    speakers: Tensor | None,
) -> None:
    """Raise unless these are what `Talker.forward` takes; values are checked on a CPU only."""
    given = {"text": text, "text_lengths": text_lengths, "codes": codes, "lengths": lengths}
    if speakers is not None:
        given["speakers"] = speakers
    for name, value in given.items():
        require_integers(name, value)
    if text.ndim != 2:
        raise ValueError(f"text: expected (B, N), got {tuple(text.shape)}")
    batch = len(text)
    if codes.ndim != 3 or len(codes) != batch or codes.shape[2] != talker.n_codebooks:
        expected = f"({batch}, S, {talker.n_codebooks})"
        raise ValueError(f"codes: expected {expected}, got {tuple(codes.shape)}")
    for name in given.keys() - {"text", "codes"}:
        if given[name].shape != (batch,):
            raise ValueError(f"{name}: expected ({batch},), got {tuple(given[name].shape)}")
    if text.device.type != "cpu" or torch.compiler.is_compiling() or not batch:
        return
    for name, longest in (("text_lengths", text.shape[1]), ("lengths", codes.shape[1])):
        least = int(name == "text_lengths")
        low, high = map(int, given[name].aminmax())
        if low < least or high > longest:
            raise ValueError(f"{name}: expected {least} to {longest}, got {low} to {high}")
    within = torch.arange(codes.shape[1])[:, None] < lengths[:, None, None]
    wrong = within & ((codes < 0) | (codes >= talker.codebook_size))
    if wrong.any():
        found = int(codes[wrong][0])
        raise IndexError(f"codes: expected 0 to {talker.codebook_size - 1}, got {found}")
