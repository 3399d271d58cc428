"""Which clips a run was begun with, for a resumed run to recognise them."""

import collections
import csv
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..atomic import write_atomically
from ..audio.files import audio_info
from ..errors import AudioFormatError, CheckpointError
from .clips import Clip


class Row(NamedTuple):
    """A clip as training sees it; the last three are "" where there is none to read."""

    file: str  # relative to the data's folder
    speaker: str
    size: str  # bytes
    frames: str  # samples of each channel, as the header declares
    rate: str  # Hz, as well


def describe_clips(clips: Sequence[Clip], source: Path) -> list[Row]:
    """The clips of a source, in order; reads every header."""
    folder = source if source.is_dir() else source.parent
    return [
        Row(os.path.relpath(clip.path, folder), clip.speaker, *_extent(clip.path)) for clip in clips
    ]


def _extent(path: Path) -> tuple[str, str, str]:
    try:
        size = str(path.stat().st_size)
    except OSError:
        return "", "", ""
    try:
        info = audio_info(path)
    except AudioFormatError:  # reported when the clip's turn comes
        return size, "", ""
    return size, str(info.frames), str(info.sample_rate)


def write_clips(path: Path, rows: Sequence[Row]) -> None:
    """Write a table of clips.

    Raises:
        CheckpointError: it cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(Row._fields)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))  # names may be no text


def read_clips(path: Path) -> list[Row]:
    """Read what `write_clips` wrote.

    Raises:
        CheckpointError: it cannot be read, or is damaged.
    """
    try:
        text = path.read_bytes().decode(errors="surrogateescape")
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        if tuple(header) != Row._fields:
            raise ValueError(f"expected the columns {', '.join(Row._fields)}, got {header}")
        return [Row(*row) for row in rows]
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except (csv.Error, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error


def differences(before: Sequence[Row], now: Sequence[Row]) -> Iterator[str]:
    """What has become of clips since, a line for each of them."""
    gone = collections.Counter(before) - collections.Counter(now)
    come = {row.file: row for row in collections.Counter(now) - collections.Counter(before)}
    for row in gone:
        other = come.pop(row.file, None)
        if other is None:
            yield f"{row.file} is missing"
            continue
        fields = zip(Row._fields, row, other, strict=True)
        changes = [f"{name} {a or 'none'} -> {b or 'none'}" for name, a, b in fields if a != b]
        yield f"{row.file}: {', '.join(changes)}"
    for file in come:
        yield f"{file} is new"


def fingerprint(clips: Sequence[Clip], source: Path) -> str:
    """A digest of names and speakers: all that runs knew of their clips until 0.2."""
    folder = source if source.is_dir() else source.parent
    names = [f"{os.path.relpath(clip.path, folder)}|{clip.speaker}" for clip in clips]
    return hashlib.sha256(os.fsencode("\n".join(names))).hexdigest()
