"""Models that come with the library, by their names."""

from pathlib import Path

from .reference.errors import CheckpointError

MODELS = Path(__file__).parent / "models"


def located(given: str | Path) -> Path:
    """Where a model is: at a path, if anything is there; else the one that is shipped by this name.

    Raises:
        CheckpointError: a bare word is neither; lists the names there are.
    """
    path = Path(given)
    bare = not isinstance(given, Path) and path.name == given and not path.suffix
    if path.exists() or not bare:
        return path
    names = sorted(folder.name for folder in MODELS.iterdir() if folder.is_dir())
    if given not in names:
        raise CheckpointError(
            f"{given}: no file or folder, and no model that comes with the library "
            f"({', '.join(names)})"
        )
    return MODELS / path
