"""Where models are: those that come with the library by their names, others by their paths."""

from pathlib import Path

from .reference.errors import CheckpointError
from .reference.reading import read_json

MODELS = Path(__file__).parent / "models"


def located(given: str | Path) -> Path:
    """Where a model is: at a path, if anything is there; else the one that is shipped by this name.
    A config stands for the folder it lies in.

    Raises:
        CheckpointError: a bare word is neither; lists the names there are. Or a config is damaged.
    """
    path = Path(given)
    if path.match("config*.json") and path.is_file():
        ours = "format" in read_json(path, "not a config")  # a checkpoint of that name
        return path if ours else path.parent
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
