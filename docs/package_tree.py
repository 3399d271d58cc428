"""mkdocs hook: lay the package out as an installation has it, for the API reference.

`kernels/` and `reference/` install as parts of `muomni_fast` (pyproject.toml), but lie beside it in
the repository. Here they are linked into one tree, `build/api/muomni_fast`; nothing is imported.
"""

import contextlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "build" / "api" / "muomni_fast"


def on_startup(**_: Any) -> None:
    """Called by mkdocs before it builds; several builds at once do not disturb each other."""
    parts = [path for path in (ROOT / "muomni_fast").iterdir() if path.name != "__pycache__"]
    wanted = {path.name: path for path in (*parts, ROOT / "kernels", ROOT / "reference")}
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for link in PACKAGE.iterdir():
        if link.readlink() != wanted.get(link.name):
            link.unlink(missing_ok=True)
    for name, path in wanted.items():
        with contextlib.suppress(FileExistsError):
            (PACKAGE / name).symlink_to(path)
