"""Which files a command reads, and where it writes what becomes of each."""

import glob
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..reference.audio.files import EXTENSIONS

# Taken from folders; other files are tried where they are named.
AUDIO = (*EXTENSIONS, ".aiff", ".aif", ".aifc", ".au", ".caf", ".rf64", ".w64")
WRITTEN = ".muc", ".npz", ".parquet", ".npy"  # and what else has files of its own here


class UsageError(ValueError):
    """A command cannot begin as it was called: exit code 2."""


class Pair(NamedTuple):
    """A file to read, and the file to write."""

    source: Path
    target: Path


def pairs(
    inputs: Sequence[str], out: str, suffix: str, kinds: Collection[str], what: str
) -> list[Pair]:
    """What to read and where to write it.

    Args:
        inputs: files, of any ending; folders, of which all files ending in one of `kinds` are taken
            at any depth; patterns that the shell did not expand.
        out: the file to write, if it ends in `suffix` and `inputs` is one file; else a folder, in
            which files of a folder keep their places.
        suffix: of what is written.
        kinds: endings of files that are read, in lower case.
        what: such files are, for messages.

    Raises:
        UsageError: there is nothing to read, `out` ends otherwise, or is a file's name for several;
            two files would go to one, or one over what is read.
    """
    found = [entry for given in inputs for entry in _found(given, Path(out), kinds)]
    if not found:
        raise UsageError(f"no {what} in {', '.join(inputs)} (endings: {', '.join(kinds)})")
    target = Path(out)
    one = len(inputs) == 1 and not Path(inputs[0]).is_dir() and len(found) == 1
    if one and target.suffix and not target.is_dir() and not out.endswith(os.sep):
        if target.suffix != suffix:
            raise UsageError(f"-o {out}: expected a file that ends in {suffix}, or a folder")
        targets = [target]
    elif not target.is_dir() and (target.exists() or _names_a_file(out)):
        several = f"{len(found)} files"
        if len(inputs) == 1 and Path(inputs[0]).is_dir():
            several = f"the files of {inputs[0]}"
        got = ", got a file" if target.exists() else ""
        raise UsageError(f"-o {out}: expected a folder for {several}{got}")
    else:
        targets = [target / relative.with_suffix(suffix) for _, relative in found]
    return [*_checked([source for source, _ in found], targets)]


def _found(given: str, out: Path, kinds: Collection[str]) -> Iterator[tuple[Path, Path]]:
    """Files that an argument means, each with its place in the folder to write."""
    path = Path(given)
    if not path.exists() and glob.has_magic(given):
        for match in sorted(glob.glob(given, recursive=True)):
            if os.path.isfile(match):
                yield Path(match), Path(Path(match).name)
        return
    if not path.is_dir():  # one that is not there is reported with those that cannot be read
        yield path, Path(path.name)
        return
    for file in found_in(path, kinds, out.resolve()):
        yield file, file.relative_to(path)


def found_in(path: Path, kinds: Collection[str], without: Path | None = None) -> Iterator[Path]:
    """Files of a folder that end in one of `kinds`, at any depth, in order.

    Args:
        path: of the folder; without anything there, there are no files.
        kinds: endings in lower case.
        without: a folder inside that is left out, resolved.
    """
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if (Path(folder) / name).resolve() != without)
        for name in sorted(names):
            file = Path(folder) / name
            if file.suffix.lower() in kinds and not name.startswith("."):
                yield file


def _names_a_file(out: str) -> bool:
    """Whether a name has the ending of what is read or written here."""
    return not out.endswith(os.sep) and Path(out).suffix.lower() in (*AUDIO, *WRITTEN)


def _checked(sources: list[Path], targets: list[Path]) -> Iterator[Pair]:
    """Pairs of which none overwrites what is read, or another one's file; each once."""
    read, taken = {path.resolve() for path in sources}, dict[Path, Path]()
    for source, target in zip(sources, targets, strict=True):
        place = target.resolve()
        if place in read:
            raise UsageError(f"{source}: would be written to {target}, which is read")
        if place not in taken:
            taken[place] = source
            yield Pair(source, target)
        elif taken[place].resolve() != source.resolve():
            raise UsageError(f"{source}: would be written to {target}, as {taken[place]} is")
