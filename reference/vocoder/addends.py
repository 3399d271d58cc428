"""What is added between the layers of a generator: speakers, a harmonic source.

Place 0 is after `conv_pre`, place i after the upsampling of level i (counted from 1).
"""

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import require_float, require_same_device

Addends = Sequence[Tensor | None]


def rows_at(rates: Sequence[int]) -> list[int]:
    """Rows of a frame at each place."""
    return [1, *itertools.accumulate(rates, operator.mul)]


def require_addends(addends: Any, mel: Tensor, channels: int, rates: Sequence[int]) -> Addends:
    """Addends that fit a mel, one or None for every place.

    Args:
        addends: tensors or None, of the first places or all.
        mel: (B, n_mels, T).
        channels: at place 0; half as many at each further place.
        rates: of every level.

    Raises:
        TypeError: they are no sequence of float tensors of the mel's dtype, and None.
        ValueError: there are more than places, or a shape or device does not fit.
    """
    if isinstance(addends, Tensor) or not isinstance(addends, Sequence):
        got = type(addends).__name__
        raise TypeError(f"addends: expected a list of tensors and None, got a {got}")
    if len(addends) > len(rates) + 1:
        raise ValueError(
            f"addends: expected at most {len(rates) + 1}, for conv_pre and {len(rates)} levels, "
            f"got {len(addends)}"
        )
    for place, addend in enumerate(addends):
        if addend is None:
            continue
        name, wide = f"addends[{place}]", channels >> place
        require_float(name, addend)
        rows = mel.shape[2] * rows_at(rates)[place]
        shapes = (mel.shape[0], wide, 1), (mel.shape[0], wide, rows)
        if addend.shape not in shapes:
            expected = " or ".join(map(str, shapes))
            raise ValueError(f"{name}: expected {expected}, got {tuple(addend.shape)}")
        require_same_device(**{"mel": mel, name: addend})
        if addend.dtype != mel.dtype and not _cast_alike(mel, addend):
            raise TypeError(f"{name}: expected {mel.dtype}, as the mel, got {addend.dtype}")
    return [*addends, *[None] * (len(rates) + 1 - len(addends))]


def _cast_alike(mel: Tensor, addend: Tensor) -> bool:
    """Whether autocast makes both of one dtype. On `meta` there is none, and asking raises."""
    device = mel.device.type
    wide = torch.float64 in (mel.dtype, addend.dtype)  # which it leaves alone
    return device != "meta" and torch.is_autocast_enabled(device) and not wide


def add(x: Tensor, addend: Tensor | None) -> Tensor:
    """(B, C, rows) and the addend of its place, if there is one."""
    return x if addend is None else x + addend.to(x.dtype)


def of_item(addends: Addends, item: int, frames: int, of: int) -> Addends:
    """What belongs to the first `frames` of an item's `of` frames, (1, C, rows) each."""
    return [
        None if a is None else a[item : item + 1, :, : a.shape[2] // of * frames or 1]
        for a in addends
    ]


def spread(addends: Addends, frames: int, rates: Sequence[int]) -> Addends:
    """The same for every row, (B, C, rows) each."""
    return [
        None if a is None else a.expand(-1, -1, frames * rows)
        for a, rows in zip(addends, rows_at(rates), strict=True)
    ]
