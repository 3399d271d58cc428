"""Codes as arrays for those who train on them: `.npz`, and `.parquet` where pyarrow is installed.

Either holds codes as uint16 and the fields of `CodeInfo`, the mel's under `mel_` and their names.
"""

import contextlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..code_files import SUFFIX, CodeInfo, fields_of, info_of, read_codes, write_codes
from ..reference.atomic import write_atomically
from ..reference.errors import CodeFileError
from ..reference.packages import lacking
from .encoding import Read, Write
from .places import UsageError

UNREADABLE = EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error


def format_of(name: str) -> tuple[str, Write, Read]:
    """The ending of a format's files, and what writes them and reads what they say.

    Raises:
        UsageError: there is no such format, or what it needs is not installed.
    """
    if name == "muc":
        return SUFFIX, write_codes, lambda path: read_codes(path)[1]
    if name == "npz":
        return ".npz", _write_npz, read_npz
    if name == "parquet":
        if not has_pyarrow():
            raise UsageError("--format parquet needs pyarrow: pip install pyarrow")
        return ".parquet", _write_parquet, read_parquet
    raise UsageError(f"--format: expected muc, npz or parquet, got {name}")


def has_pyarrow() -> bool:
    """Whether `.parquet` can be written and read."""
    return not lacking(["pyarrow"])


def _write_npz(path: Path, codes: np.ndarray, info: CodeInfo) -> None:
    content = io.BytesIO()
    np.savez(content, codes=codes.astype(np.uint16), **fields_of(info))
    write_atomically(path, content.getvalue())


def read_npz(path: Path) -> CodeInfo:
    """What an `.npz` of ours says of its codes; raises CodeFileError."""
    with _ours(path, "an .npz"), np.load(path, allow_pickle=False) as arrays:
        shape = arrays["codes"].shape
        info = info_of({name: arrays[name].item() for name in arrays.files if name != "codes"})
        if shape != (info.steps, info.n_codebooks):
            raise ValueError(f"codes: expected ({info.steps}, {info.n_codebooks}), got {shape}")
        return info


def _write_parquet(path: Path, codes: np.ndarray, info: CodeInfo) -> None:
    import pyarrow
    import pyarrow.parquet

    fields = fields_of(info)
    columns = {name: pyarrow.array([value]) for name, value in fields.items()}
    kind = pyarrow.list_(pyarrow.list_(pyarrow.uint16()))
    columns["codes"] = pyarrow.array([codes.astype(np.uint16).tolist()], kind)
    table = pyarrow.table(columns)
    table = table.replace_schema_metadata({"muomni_fast": json.dumps(fields)})
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content)
    write_atomically(path, content.getvalue())


def read_parquet(path: Path) -> CodeInfo:
    """What a `.parquet` of ours says of its codes; raises CodeFileError."""
    import pyarrow.parquet

    with _ours(path, "a .parquet"):
        metadata = pyarrow.parquet.read_metadata(path).metadata
        return info_of(json.loads((metadata or {})[b"muomni_fast"]))


@contextlib.contextmanager
def _ours(path: Path, what: str) -> Iterator[None]:
    """What goes wrong inside is the file's fault."""
    try:
        if not path.is_file():  # reading a pipe may never end
            raise OSError("no such file" if not path.exists() else "not a regular file")
        yield
    except UNREADABLE as error:
        raise CodeFileError(f"{path}: not {what} that `encode` wrote: {error}") from error
