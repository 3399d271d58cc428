"""What lies where a command would write: nothing, the same, another of ours, or somebody's file."""

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..code_files import MAGIC, CodeInfo, fields_of
from ..reference.audio.wav import wav_comment
from ..reference.errors import CodeFileError

MARK = "muomni-fast"  # of comments in WAV files
DIGITS = 16  # of a digest in a comment
HINT = "; --overwrite replaces it"


class TargetError(ValueError):
    """A file is where another would be written; it stays."""


def is_vacant(target: Path) -> bool:
    """Whether there is no file, or one without content, which holds nothing to lose.

    Raises:
        TargetError: a folder or a device is there.
    """
    if not target.exists():
        return True
    if not target.is_file():
        got = "a folder" if target.is_dir() else "a pipe or a device"
        raise TargetError(f"{target}: expected a file to write, got {got}")
    return target.stat().st_size == 0


def codes_there(
    target: Path, read: Callable[[Path], CodeInfo], wanted: Callable[[CodeInfo], CodeInfo]
) -> CodeInfo | None:
    """What is known of codes that are there already and are those that would be written.

    Args:
        target: the file to write.
        read: what reads such files; raises CodeFileError.
        wanted: what is known of the codes to write, given what is there.

    Returns:
        None where the file is to be written: nothing is there, or a damaged file of ours.

    Raises:
        TargetError: another file is there, of ours or not.
    """
    if is_vacant(target):
        return None
    try:
        found = read(target)
    except CodeFileError as error:
        with open(target, "rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                return None
        raise _foreign(target) from error
    _require_same(target, fields_of(found), fields_of(wanted(found)))
    return found


def is_sound_there(target: Path, made_of: Mapping[str, str]) -> bool:
    """Whether a WAV file is there that was made of the same.

    Args:
        target: the file to write.
        made_of: all that its sound depends on.

    Raises:
        TargetError: another file is there, of ours or not.
        CheckpointError: it cannot be read.
    """
    if is_vacant(target):
        return False
    comment, whole = wav_comment(target)
    mark, *words = comment.split(" ")
    if mark != MARK:
        raise _foreign(target)
    pairs = (word.partition("=") for word in words)
    _require_same(target, {name: value for name, _, value in pairs}, made_of)
    return whole


def comment_of(made_of: Mapping[str, str]) -> str:
    """A WAV file's comment that `is_sound_there` understands."""
    return " ".join([MARK, *(f"{name}={value}" for name, value in made_of.items())])


def entry(value: Any) -> str:
    """An option's value as a word of a comment."""
    return quote(str(value))


def digest(content: str | bytes) -> str:
    """The first digits of a sha256, of which a comment says what a file was made of."""
    content = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def _foreign(target: Path) -> TargetError:
    what = "is there already and was not made by muomni-fast"
    return TargetError(f"{target}: {what}{HINT}")


def _require_same(target: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise TargetError if a file was made of something else; names what differs."""
    differing = []
    for name in {**wanted, **found}:
        there, here = found.get(name), wanted.get(name)
        if there == here:
            continue
        known = None not in (there, here)
        if not known or re.fullmatch(f"[0-9a-f]{{{DIGITS},}}", str(there)):
            differing.append(f"another {name}")
        else:
            differing.append(f"{name} {there} instead of {here}")
    if differing:
        made = ", ".join(differing)
        raise TargetError(f"{target}: is there already, made with {made}{HINT}")
