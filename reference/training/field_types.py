"""Whether values read from JSON have the types that dataclasses declare."""

import types
import typing
from collections.abc import Mapping
from typing import Any

LARGEST = 1e300  # of a float; an int has 63 bits: JSON allows for more


def require_field_types(cls: type, saved: Mapping[str, Any], prefix: str = "") -> None:
    """Check the fields of a dataclass that `saved` has, by their annotations.

    Raises:
        TypeError: a value has another type, or is beyond what numbers can be; names it.
    """
    for name, hint in typing.get_type_hints(cls).items():
        if name in saved:
            require_type(prefix + name, saved[name], hint)


def require_type(name: str, value: Any, hint: Any) -> None:
    """Raise TypeError unless `value` is what JSON makes of something annotated `hint`."""
    if not fits(value, hint):
        expected = hint.__name__ if isinstance(hint, type) else str(hint)
        raise TypeError(f"{name}: expected {expected}, got {value!r:.60}")


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` is what JSON makes of something annotated `hint`; True of unknown hints."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if kind is tuple or kind is list:  # tuple[int, ...] or list[int]
        return isinstance(value, (list, tuple)) and all(fits(item, parts[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(fits(item, parts[1]) for item in value.values())
    if hint is float:
        return _is_number(value) and abs(value) <= LARGEST
    if hint is int:
        return _is_number(value) and isinstance(value, int) and abs(value) < 1 << 63
    if hint in (bool, str, dict, types.NoneType):
        return isinstance(value, hint)
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
