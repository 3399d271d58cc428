"""Checks of plain values, such as a constructor is given or a file holds: integers, numbers, words.

Every check returns the value in Python's own type, so that what is kept can be written as JSON. A
wrong type raises TypeError, a value out of range ValueError; either names the argument, what was
expected and what came. True and False are not integers here; numpy's integers are.
"""

import contextlib
import contextvars
import math
import numbers
import operator
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

# Beyond what any model here is, and small enough to build and to refuse quickly.
MOST_CODEBOOKS = 256
MOST_CHANNELS = 1 << 16  # also of mel bands, kernel sizes and dilations
MOST_HOP = 1 << 16  # samples per frame, and frames per code
MOST_LAYERS = 256  # dilated convolutions of a generator, and entries of every list
MOST_PARAMETERS = 1 << 30  # 4 GiB in float32
MOST_NAMED, MOST_LETTERS = 8, 100  # names in an error message, and letters of each

_most_parameters = contextvars.ContextVar("most_parameters", default=MOST_PARAMETERS)


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > 256:  # Python refuses to print the longest
            return f"<an integer of {x.bit_length():,} bits>"
        return repr(x)


def shown(value: Any) -> str:
    """`value` for an error message: never long, whatever it is, and printable."""
    return _Short().repr(value)


def cut(name: str) -> str:
    """A name for an error message: those that a file holds have no bounds."""
    return name if len(name) <= MOST_LETTERS else f"{name[:MOST_LETTERS]}..."


def listed(names: Sequence[str], so_many: int = MOST_NAMED) -> str:
    """The first names, cut, and how many more there are, for an error message."""
    more = [f"{len(names) - so_many:,} more"] if len(names) > so_many else []
    return ", ".join([*map(cut, names[:so_many]), *more])


def require_int(name: str, value: Any, least: int, most: int | None = None) -> int:
    """An integer of at least `least`, and at most `most` if that is given."""
    return _integers(name, value, [value], "an integer", least, most)[0]


def require_ints(name: str, values: Any, least: int, most: int | None = None) -> tuple[int, ...]:
    """A list or tuple of such integers."""
    return _integers(name, values, require_sequence(name, values), "integers", least, most)


def _integers(
    name: str, given: Any, values: Sequence[Any], what: str, least: int, most: int | None
) -> tuple[int, ...]:
    bounds = f"of at least {least}" if most is None else f"from {least} to {most:,}"
    wrong = f"{name}: expected {what} {bounds}, got"
    try:
        if any(isinstance(value, bool) for value in values):
            raise TypeError
        integers = tuple(operator.index(value) for value in values)
    except TypeError:
        raise TypeError(f"{wrong} {shown(given)}") from None
    if min(integers) < least or (most is not None and max(integers) > most):
        raise ValueError(f"{wrong} {shown(given)}")
    return integers


def require_sequence(name: str, values: Any) -> Sequence[Any]:
    """A list or tuple, say, of one to MOST_LAYERS entries."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise TypeError(f"{name}: expected a list or tuple, got {shown(values)}")
    if not 1 <= len(values) <= MOST_LAYERS:
        raise ValueError(f"{name}: expected 1 to {MOST_LAYERS:,} entries, got {len(values):,}")
    return values


def require_number(name: str, value: Any) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {shown(value)}")
    return number


def require_bool(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {shown(value)}")
    return value


def require_text(name: str, value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, got {shown(value)}")
    return value


def require_choice(name: str, value: Any, *choices: str) -> str:
    """One of these strings."""
    expected = " or ".join(f'"{choice}"' for choice in choices)
    if value not in choices:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{name}: expected {expected}, got {shown(value)}")
    return value


def require_dict(name: str, value: Any) -> dict[str, Any]:
    """A dictionary, as JSON's objects become."""
    if not isinstance(value, dict):
        raise TypeError(f"{name}: expected a dictionary, got {shown(value)}")
    return value


def require_parameters(what: str, count: int) -> None:
    """Raise ValueError if a model of `count` parameters is too large to make here."""
    most = _most_parameters.get()
    if count > most:
        raise ValueError(f"{what}: expected at most {most:,} parameters, got {shown(count)}")


@contextlib.contextmanager
def held_by_file(size: int) -> Iterator[None]:
    """Let `require_parameters` refuse models that a file of `size` bytes cannot hold: of more than
    a parameter for each byte, and a million, so that what a smaller file lacks can be listed."""
    token = _most_parameters.set(min(size + 1_000_000, MOST_PARAMETERS))
    try:
        yield
    finally:
        _most_parameters.reset(token)
