"""What is said in a clip, wherever a corpus keeps it."""

import functools
import re
from pathlib import Path

from ..errors import DataError
from .clips import LIBRI_NAME, Clip

CHAPTERS = 64  # whose transcripts are kept in memory; clips come in their order


def transcript(clip: Clip) -> str | None:
    """The text of a clip, without space at its ends, or None where there is none.

    It is the table's (`Clip.text`); or that of a file beside the clip, as LibriTTS has
    (`<clip>.normalized.txt`) and LibriSpeech for a chapter (`<speaker>-<chapter>.trans.txt`); or
    that of VCTK's folder `txt`.

    Raises:
        DataError: a file of text cannot be read, or is not in UTF-8; names it.
    """
    text = clip.text
    if text is None:
        text = _text_beside(clip.path)
    return (text or "").strip() or None


def _text_beside(path: Path) -> str | None:
    for suffix in (".normalized.txt", ".original.txt"):
        own = path.with_name(path.stem + suffix)
        if own.is_file():
            return _read(own)
    if LIBRI_NAME.match(path.stem):
        chapter = path.with_name("-".join(path.stem.split("-")[:2]) + ".trans.txt")
        return _chapter(chapter).get(path.stem) if chapter.is_file() else None
    if len(path.parents) > 2:
        stem = re.sub(r"_mic\d$", "", path.stem)  # of VCTK 0.92, which has two microphones
        text = path.parents[2] / "txt" / path.parent.name / f"{stem}.txt"
        if text.is_file():
            return _read(text)
    return None


@functools.lru_cache(CHAPTERS)
def _chapter(path: Path) -> dict[str, str]:
    """Texts of a chapter of LibriSpeech by clip: lines of a name, a space and a text."""
    lines = (line.split(" ", 1) for line in _read(path).splitlines())
    return {parts[0]: parts[1] for parts in lines if len(parts) == 2}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text in UTF-8: {error}") from error
