"""Files that are either written whole or not at all."""

import contextlib
import os
from pathlib import Path

from .errors import CheckpointError


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that a crash or a full disk leaves the old one or the new one, never a part.

    Raises:
        CheckpointError: the file cannot be written; names the path and its size.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")  # one writer; a killed one's is written over
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CheckpointError(
            f"{path}: cannot write {len(content):,} bytes: {error.strerror}; "
            "the previous file, if any, is intact"
        ) from error
    # The rename itself reaches the disk with its folder, where the system can be told so.
    with contextlib.suppress(OSError):
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
