"""Finding clips in folders and manifests, and splitting them into training and held-out ones."""

import collections
import csv
import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..audio.files import EXTENSIONS
from ..errors import DataError

HELD_OUT = 0.1  # share of speakers, or of each speaker's clips, that training never sees
LEAST_SPEAKERS = 5  # with fewer known speakers, clips are held out instead
MAX_MANIFEST_BYTES = 256 << 20
LIBRI_NAME = re.compile(r"^(\d+)[-_]\d+[-_]\d+([-_]\d+)?$")


@dataclasses.dataclass(frozen=True)
class Clip:
    """One audio file and its speaker ("" where unknown).

    Attributes:
        text: what is said, where a table has it; see `transcripts.transcript`.
    """

    path: Path
    speaker: str
    text: str | None = dataclasses.field(default=None, compare=False)


def find_clips(source: str | Path) -> list[Clip]:
    """List the clips of a data source, sorted by path.

    Args:
        source: a CSV manifest (`file`, relative to it; optional `speaker` and `text`); or a folder:
            LJSpeech's (`metadata.csv` with `|`, a fourth column naming the speaker), VCTK's,
            LibriTTS's or LibriSpeech's, or any folder of audio, searched recursively.

    Raises:
        DataError: the source is missing, empty or malformed; names it and what is wrong.
    """
    source = Path(source)
    if not os.path.exists(source):  # where a name is too long, pathlib's raises
        raise DataError(f"{source}: no such file or folder")
    if source.is_file():
        clips = list(_manifest_clips(source))
    elif (source / "metadata.csv").is_file():
        clips = list(_ljspeech_clips(source))
    else:
        files = (
            p for p in source.rglob("*") if p.suffix.lower() in EXTENSIONS and os.path.isfile(p)
        )
        clips = [Clip(path, _speaker_of(path)) for path in files]
    if not clips:
        raise DataError(f"{source}: no audio found (looked for {', '.join(EXTENSIONS)})")
    return sorted(clips, key=lambda clip: str(clip.path))


def _rows(path: Path, **options: Any) -> Iterator[tuple[int, list[str]]]:
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise DataError(f"{path}: larger than {MAX_MANIFEST_BYTES:,} bytes")
    number = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.reader(file, **options), start=1):
                if row:
                    yield number, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a text table after line {number}: {error}") from error


def _manifest_clips(path: Path) -> Iterator[Clip]:
    rows = _rows(path)
    _, header = next(rows, (0, []))
    if "file" not in header:
        raise DataError(f'{path}: expected a column "file" in its first line, got {header}')
    file_at = header.index("file")
    speaker_at, text_at = (
        header.index(name) if name in header else None for name in ("speaker", "text")
    )
    for number, row in rows:
        if len(row) != len(header) or not row[file_at] or "\0" in row[file_at]:
            raise DataError(f"{path}: line {number}: expected {len(header)} columns, got {row}")
        speaker = "" if speaker_at is None else row[speaker_at]
        yield Clip(path.parent / row[file_at], speaker, None if text_at is None else row[text_at])


def _ljspeech_clips(folder: Path) -> Iterator[Clip]:
    table = folder / "metadata.csv"
    for number, row in _rows(table, delimiter="|", quoting=csv.QUOTE_NONE):
        if len(row) < 2 or not row[0]:
            raise DataError(f"{table}: line {number}: expected id|text..., got {row}")
        candidates = [folder / "wavs" / (row[0] + extension) for extension in EXTENSIONS]
        path = next((p for p in candidates if os.path.isfile(p)), candidates[0])
        normalised = row[2] if len(row) > 2 else ""  # numbers and abbreviations written out
        yield Clip(path, row[3] if len(row) > 3 else folder.name, normalised or row[1])


def _speaker_of(path: Path) -> str:
    """The speaker that VCTK's and the Libri corpora's names give away, or ""."""
    if re.match(r"^[ps]\d+_\d+", path.stem):
        return path.stem.split("_")[0]
    libri = LIBRI_NAME.match(path.stem)
    return libri.group(1) if libri else ""


def split_clips(clips: Sequence[Clip], by: str = "auto") -> tuple[list[Clip], list[Clip], str]:
    """Hold out HELD_OUT of the speakers, or of each speaker's clips.

    Which ones is decided by a hash of their names, never by the seed, so that a split stays as it
    is.

    Args:
        clips: at least two.
        by: "speaker" (no held-out speaker is trained on), "clip", or "auto": by speaker where at
            least LEAST_SPEAKERS are known.

    Returns:
        training clips, held-out clips, and "speaker" or "clip".

    Raises:
        DataError: there are too few clips or speakers to hold any out.
    """
    groups: dict[str, list[Clip]] = collections.defaultdict(list)
    for clip in clips:
        groups[clip.speaker].append(clip)
    known = sorted(speaker for speaker in groups if speaker)
    if by == "auto":
        by = "speaker" if len(known) >= LEAST_SPEAKERS else "clip"
    if by == "speaker":  # clips of unknown speakers are trained on
        if len(known) < 2:
            raise DataError(f"split by speaker: expected at least 2 known speakers, got {known}")
        held_speakers = set(_first_by_hash(known))
        held = [clip for clip in clips if clip.speaker in held_speakers]
    elif by == "clip":
        if len(clips) < 2:
            raise DataError(f"split by clip: expected at least 2 clips, got {len(clips)}")
        enough = [group for group in groups.values() if len(group) > 1]
        if enough:
            held_paths = {p for g in enough for p in _first_by_hash([str(c.path) for c in g])}
        else:
            held_paths = set(_first_by_hash([str(c.path) for c in clips]))
        held = [clip for clip in clips if str(clip.path) in held_paths]
    else:
        raise ValueError(f'split: expected "auto", "speaker" or "clip", got {by!r}')
    chosen = set(held)
    return [clip for clip in clips if clip not in chosen], held, by


def _first_by_hash(names: list[str]) -> list[str]:
    def digest(name: str) -> str:
        last_two = "/".join(Path(name).parts[-2:])  # corpora number files anew in every folder
        return hashlib.sha256(os.fsencode(last_two)).hexdigest()

    return sorted(names, key=digest)[: max(1, round(HELD_OUT * len(names)))]
