"""Files that are either written whole or not at all."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import CheckpointError


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file so that a crash or a full disk leaves the old one or the new one, never a part.

    A process that is killed meanwhile leaves a file `.<name>.tmp`: the next write of the same name
    replaces it, and `remove_leftovers` removes it.

    Raises:
        CheckpointError: the file cannot be written; names the path and its size.
    """
    with written_atomically(path, f"{len(content):,} bytes") as file:
        file.write(content)


@contextlib.contextmanager
def written_atomically(path: str | Path, what: str) -> Iterator[BinaryIO]:
    """A file that becomes the one at `path`, as by `write_atomically`, once the block ends well.

    Args:
        path: of the file.
        what: what to say could not be written.

    Raises:
        CheckpointError: the file cannot be written; names the path.
    """
    path = Path(path)
    # One writer at a time. The name is shortened because a file may have the longest name there is.
    temporary = path.with_name(f".{shortened(path.name, 200)}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot write {what}: {error.strerror or error}; "
            "the previous file, if any, is intact"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # after a rename it is gone
            temporary.unlink()
    # The rename itself reaches the disk with its folder, where the system can be told so.
    with contextlib.suppress(OSError):
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def make_folder(path: Path) -> None:
    """Make a folder, and those it is in, where they are not there.

    Raises:
        CheckpointError: it cannot be made; names the path.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot make this folder: {error.strerror}") from error


def is_leftover(path: Path) -> bool:
    """Whether a file is what a killed `write_atomically` leaves."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writes left in a folder of ours and in those inside it.

    Raises:
        CheckpointError: a file cannot be removed; names it.
    """
    for path in filter(is_leftover, folder.rglob("*")):
        try:
            path.unlink()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot remove it: {error.strerror}") from error


def shortened(name: str, most: int) -> str:
    """A name of at most `most` bytes: of a longer one its beginning, and a digest of the whole."""
    content = os.fsencode(name)
    if len(content) <= most:
        return name
    digest = hashlib.sha256(content).hexdigest()[:12]
    return f"{content[: most - 13].decode(errors='ignore')}-{digest}"
