"""Files that others may have written: regular ones only, of bounded size, JSON taken strictly."""

import collections
import contextlib
import io
import json
import math
import os
import pickle
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .errors import CheckpointError
from .packages import installing
from .values import shown

MOST_JSON = 1 << 22  # bytes; what training writes takes a few thousand
MOST_DEPTH = 32  # brackets inside brackets
MOST_DIGITS = 64  # of an integer
DAMAGED = (  # what torch.load raises of files whose bits were changed
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError),
    *(OSError, RuntimeError, TypeError, ValueError, struct.error),
)
DTYPES = {  # of safetensors
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@contextlib.contextmanager
def blaming(path: str | Path) -> Iterator[None]:
    """What is wrong with values inside is wrong with the file they came from: CheckpointError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


@contextlib.contextmanager
def open_regular(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file opened for reading, and its size in bytes. Others can hang, or never end.

    Raises:
        CheckpointError: it is missing, cannot be read, or is a folder, a pipe or a device.
    """
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  # closed below
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r}: not a file's name: {error}") from error
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: expected a regular file, got a pipe or a device")
        try:
            yield file, status.st_size
        except OSError as error:
            raise CheckpointError(f"{path}: {error.strerror}") from error


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # for somebody to write to a pipe


def read_regular(path: str | Path, most: int | None = None) -> bytes:
    """Content of a regular file, of at most `most` bytes if that is given.

    Raises:
        CheckpointError: as `open_regular`, or it is larger.
    """
    with open_regular(path) as (file, size):
        if most is not None and size > most:
            raise CheckpointError(f"{path}: expected at most {most:,} bytes, got {size:,}")
        return file.read(size)


def read_json(path: str | Path, wrong: str) -> dict[str, Any]:
    """The object that a JSON file holds: UTF-8, no key twice, finite numbers, within the limits
    above.

    Args:
        path: of the file.
        wrong: what to say of a file that holds anything else.

    Raises:
        CheckpointError: it cannot be read, or is no such file.
    """
    return parse_json(read_regular(path, MOST_JSON), path, wrong)


def parse_json(content: bytes, path: str | Path, wrong: str) -> dict[str, Any]:
    """`read_json` of content that was read from `path`."""
    try:
        document = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse,
            parse_float=_finite,
            parse_int=_integer,
        )
        _require_shallow(document)
    except UnicodeDecodeError as error:  # which holds the whole file
        raise CheckpointError(f"{path}: {wrong}, it is not text") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {wrong}: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: {wrong}: it holds no object")
    return document


def read_layout(path: str | Path) -> dict[str, Tensor]:
    """Names, shapes and dtypes of the tensors in a safetensors file: tensors without memory, on the
    meta device.

    Raises:
        CheckpointError: the file cannot be read, is no such file, or is longer or shorter than
            they say.
    """
    wrong = "not a safetensors file"
    with open_regular(path) as (file, size):
        header_size = int.from_bytes(file.read(8), "little")
        if header_size > min(size, MOST_JSON):
            raise CheckpointError(f"{path}: {wrong}: its header would have {header_size:,} bytes")
        header = parse_json(file.read(header_size), path, wrong)
    header.pop("__metadata__", None)
    try:
        layout = {
            name: torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]], device="meta")
            for name, entry in header.items()
        }
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {wrong}: {type(error).__name__}: {error}") from error
    expected = 8 + header_size + sum(tensor.nbytes for tensor in layout.values())
    if size != expected:
        raise CheckpointError(f"{path}: expected {expected:,} bytes, got {size:,}")
    return layout


def read_tensors(path: str | Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Some of the tensors in a safetensors file, which `read_layout` has named; the others are not
    read.

    Raises:
        CheckpointError: the file is damaged.
    """
    safetensors = safetensors_library()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = collections.Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(twice)} comes twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:MOST_DIGITS]} is too large a number")
    return number


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(text)} digits is too large")
    return int(text)


def _require_shallow(document: Any) -> None:
    level = [document]
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ValueError(f"brackets are more than {MOST_DEPTH} deep")


def safetensors_library() -> ModuleType:
    """safetensors' functions for torch, which only checkpoints need."""
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        message = f"checkpoints need safetensors: {installing('train')}"
        raise ModuleNotFoundError(message, name=error.name) from error
    return safetensors


def load_foreign(path: str | Path) -> Any:
    """What another project's file holds, on the CPU: `.safetensors`, or plain data that torch
    saved.

    Raises:
        CheckpointError: it is missing, no regular file, damaged, or would run code.
    """
    content = read_regular(path)
    if Path(path).suffix != ".safetensors":
        return load_plain(io.BytesIO(content), path)
    safetensors = safetensors_library()
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error


def is_plain(value: Any) -> bool:
    """Whether a value is a tensor of its own memory, which no copy of it would exceed: one on the
    meta device has none, and a nested one hides that of others."""
    return (
        isinstance(value, Tensor)
        and value.device.type == "cpu"
        and not value.is_nested
        and value.layout == torch.strided
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def load_plain(source: io.BytesIO, path: str | Path) -> Any:
    """Plain data that torch saved, on the CPU, read from `path` before.

    Raises:
        CheckpointError: it is damaged, or would run code.
    """
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose text is advice to load it unsafely
        raise CheckpointError(f"{path}: damaged, or holds more than plain data") from error
    except DAMAGED as error:
        raise CheckpointError(
            f"{path}: damaged, or not plain data: {type(error).__name__}: {error}"
        ) from error
