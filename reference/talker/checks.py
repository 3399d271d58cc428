"""Checks of what the Talker is given."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..checks import require_integers, require_same_device
from ..rvq.digest import quantizer_digest
from ..values import MOST_CHANNELS, require_text, shown
from .text import TEXT_SIZE

if TYPE_CHECKING:
    from .model import Talker


def require_talker(talker: "Talker", rvq: nn.Module, frames_per_code: int, pooling: str) -> None:
    """Raise ValueError if a Talker speaks other codes than this quantizer's, TypeError if it is
    no Talker.

    One that knows of no quantizer (`Talker.quantizer` is "") is compared by the codes' shape only.
    """
    if not isinstance(getattr(talker, "quantizer", None), str):
        raise TypeError(f"talker: expected a Talker, got {type(talker).__name__}")
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
            f"got {digest[:12]}... (one that was cast to fewer bits is another: cast the codec)"
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
    numbers = {name: i for i, name in enumerate(known, start=1)}
    found = [speaker_id("speakers", numbers, speaker) for speaker in speakers]
    return torch.tensor(found, device="cpu", dtype=torch.int64)


def speaker_id(name: str, numbers: Mapping[str, int], speaker: Any) -> int:
    """A speaker's id, 0 for None.

    Args:
        name: of the argument, for errors.
        numbers: ids of the speakers there are.
        speaker: a name or None.
    """
    if speaker is None:
        return 0
    if require_text(name, speaker) not in numbers:
        raise ValueError(
            f"{name}: expected None or one of {shown([*numbers])}, got {shown(speaker)}"
        )
    return numbers[speaker]


def _require_between(
    name: str, value: Tensor, least: int, most: int, error: type[Exception]
) -> None:
    low, high = map(int, value.aminmax())
    if low < least or high > most:
        raise error(f"{name}: expected {least} to {most}, got {low} to {high}")


def require_batch(
    talker: "Talker",
    text: Tensor,
    text_lengths: Tensor,
    codes: Tensor,
    lengths: Tensor,
    speakers: Tensor | None,
) -> list[Tensor]:
    """What `Talker.forward` takes, without speakers that are None, in int64, so that no narrow
    number wraps; raise unless they fit. Values are checked on a CPU only."""
    given = {"text": text, "text_lengths": text_lengths, "codes": codes, "lengths": lengths}
    if speakers is not None:
        given["speakers"] = speakers
    for name, value in given.items():
        require_integers(name, value)
    given = {name: value.long() for name, value in given.items()}
    text, codes, lengths = given["text"], given["codes"], given["lengths"]
    if text.ndim != 2:
        raise ValueError(f"text: expected (B, N), got {tuple(text.shape)}")
    batch = len(text)
    if codes.ndim != 3 or len(codes) != batch or codes.shape[2] != talker.n_codebooks:
        expected = f"({batch}, S, {talker.n_codebooks})"
        raise ValueError(f"codes: expected {expected}, got {tuple(codes.shape)}")
    for name, value in given.items():
        if name not in ("text", "codes") and value.shape != (batch,):
            raise ValueError(f"{name}: expected ({batch},), got {tuple(value.shape)}")
    require_same_device(**given)
    wide = [*given.values()]
    if text.device.type != "cpu" or torch.compiler.is_compiling() or not batch:
        return wide
    for name, longest in (("text_lengths", text.shape[1]), ("lengths", codes.shape[1])):
        least = int(name == "text_lengths")
        _require_between(name, given[name], least, longest, ValueError)
    _require_between("text", text, 0, TEXT_SIZE - 1, IndexError)
    if "speakers" in given:
        _require_between("speakers", given["speakers"], 0, len(talker.speakers), IndexError)
    within = torch.arange(codes.shape[1], device="cpu")[:, None] < lengths[:, None, None]
    wrong = within & ((codes < 0) | (codes >= talker.codebook_size))
    if wrong.any():
        found = int(codes[wrong][0])
        raise IndexError(f"codes: expected 0 to {talker.codebook_size - 1}, got {found}")
    return wide
