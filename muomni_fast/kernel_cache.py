"""The folder where Triton keeps compiled kernels, and whether others could plant code in it.

Triton loads and runs what it finds there by name, and compares it with nothing: whoever can write
to the folder can run code as the user.
"""

import os
import stat
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The folder, by Triton's own rules."""
    knobs = sys.modules.get("triton.knobs")
    if knobs is not None:  # a program may have set it there
        return Path(knobs.cache.dir)
    home = os.environ.get("TRITON_HOME", os.path.expanduser("~/"))
    return Path(os.environ.get("TRITON_CACHE_DIR", os.path.join(home, ".triton", "cache")))


def hazard(folder: Path) -> str | None:
    """How others could put files of theirs into `folder`, or None if they cannot.

    They must neither be able to write to it, nor to put a folder of their own in its place. Where
    the system knows no such permissions, nothing is checked.
    """
    if os.name != "posix":
        return None
    folder = Path(os.path.realpath(folder))
    for place in (folder, *folder.parents):
        try:
            found = place.stat()
        except FileNotFoundError:  # what does not exist yet is made in the folder above
            continue
        except OSError as error:
            return f"{place} cannot be looked at: {error.strerror}"
        others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if place == folder:
            if found.st_uid != os.getuid():
                return f"{place} belongs to another user ({found.st_uid})"
            if others_write:
                return f"others can write to {place} (mode {stat.S_IMODE(found.st_mode):04o})"
        elif found.st_uid not in (0, os.getuid()):
            return f"{place}, which it is in, belongs to another user ({found.st_uid})"
        elif others_write and not (found.st_mode & stat.S_ISVTX and _exists_below(place, folder)):
            mode = stat.S_IMODE(found.st_mode)
            return f"others can write to {place}, which it is in (mode {mode:04o})"
    return None


def _exists_below(place: Path, folder: Path) -> bool:
    """Whether the next folder on the way from `place` to `folder` is there already: where the
    sticky bit is set, as in /tmp, others can then no longer put theirs in its place."""
    return (place / folder.relative_to(place).parts[0]).exists()
