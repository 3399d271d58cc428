"""Codes as arrays for those who train on them: `.npz`, and `.parquet` where pyarrow is installed.

Either holds codes as uint16 and the fields of `CodeInfo`, the mel's under `mel_` and their names.
"""

import dataclasses
import importlib.util
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..code_files import SUFFIX, CodeInfo, read_codes, write_codes
from ..reference.atomic import write_atomically
from ..reference.audio.mel import MelConfig
from ..reference.errors import CodeFileError
from .encoding import Read, Write
from .places import UsageError

UNREADABLE = EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error


def format_of(name: str) -> tuple[str, Write, Read]:
    """The ending of a format's files, and what writes them and reads what is there.

    Raises:
        UsageError: there is no such format, or what it needs is not installed.
    """
    if name == "muc":
        return SUFFIX, write_codes, _read_ours
    if name == "npz":
        return ".npz", _write_npz, _read_npz
    if name == "parquet":
        if importlib.util.find_spec("pyarrow") is None:
            raise UsageError("--format parquet needs pyarrow: pip install pyarrow")
        return ".parquet", _write_parquet, _read_parquet
    raise UsageError(f"--format: expected muc, npz or parquet, got {name}")


def _read_ours(path: Path) -> CodeInfo | None:
    try:
        return read_codes(path)[1]
    except CodeFileError:  # not there, or to be written anew
        return None


def _fields(info: CodeInfo) -> dict[str, Any]:
    """The fields of a CodeInfo in one level."""
    fields = dataclasses.asdict(info)
    mel = fields.pop("mel")
    return fields | {f"mel_{name}": value for name, value in mel.items()}


def _info(fields: dict[str, Any]) -> CodeInfo:
    names = [field.name for field in dataclasses.fields(CodeInfo) if field.name != "mel"]
    mel = {field.name: fields[f"mel_{field.name}"] for field in dataclasses.fields(MelConfig)}
    return CodeInfo(**{name: fields[name] for name in names}, mel=MelConfig(**mel))


def _write_npz(path: Path, codes: np.ndarray, info: CodeInfo) -> None:
    content = io.BytesIO()
    np.savez(content, codes=codes.astype(np.uint16), **_fields(info))
    write_atomically(path, content.getvalue())


def _read_npz(path: Path) -> CodeInfo | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            shape = arrays["codes"].shape
            fields = {name: arrays[name].item() for name in arrays.files if name != "codes"}
        return _of(shape, _info(fields))
    except UNREADABLE:
        return None


def _write_parquet(path: Path, codes: np.ndarray, info: CodeInfo) -> None:
    import pyarrow
    import pyarrow.parquet

    fields = _fields(info)
    columns = {name: pyarrow.array([value]) for name, value in fields.items()}
    kind = pyarrow.list_(pyarrow.list_(pyarrow.uint16()))
    columns["codes"] = pyarrow.array([codes.astype(np.uint16).tolist()], kind)
    table = pyarrow.table(columns)
    table = table.replace_schema_metadata({"muomni_fast": json.dumps(fields)})
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content)
    write_atomically(path, content.getvalue())


def _read_parquet(path: Path) -> CodeInfo | None:
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(path).metadata
        return _info(json.loads((metadata or {})[b"muomni_fast"]))
    except UNREADABLE:
        return None


def _of(shape: tuple[int, ...], info: CodeInfo) -> CodeInfo | None:
    return info if shape == (info.steps, info.n_codebooks) else None
