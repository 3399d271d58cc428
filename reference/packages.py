"""Packages that only some commands need, looked for before these begin."""

import importlib.util
from collections.abc import Sequence

# By the extra that brings them; the names of packages and of their modules are the same.
NEEDED = {
    "train": ("filelock", "matplotlib", "safetensors", "soundfile", "soxr", "tqdm"),
    "evaluate": ("safetensors", "soundfile", "soxr", "tqdm"),  # metrics say what they need more
}


def installing(extra: str) -> str:
    """How to install an extra: no package index has this library, so from its repository."""
    return f'pip install -c constraints.txt -e ".[{extra}]" in the repository'


class MissingPackageError(ModuleNotFoundError):
    """A command cannot begin for want of a package; the message names the extra that brings it."""


def lacking(names: Sequence[str]) -> list[str]:
    """Those of some packages that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def require_packages(what: str, extra: str) -> None:
    """Raise MissingPackageError unless all that an extra brings is installed.

    Args:
        what: needs it, for the message.
        extra: a key of NEEDED.
    """
    missing = lacking(NEEDED[extra])
    if missing:
        message = f"{what} needs {', '.join(missing)}: {installing(extra)}"
        raise MissingPackageError(message, name=missing[0])
