"""mkdocs hook: lay the package out as an installation has it, for the API reference.

`kernels/` and `reference/` install as parts of `muomni_fast` (pyproject.toml), but lie beside it in
the repository. Here they are linked into one tree, `build/api/muomni_fast`; nothing is imported.
"""

import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / "build" / "api"


def on_startup(**_: Any) -> None:
    package = TREE / "muomni_fast"
    shutil.rmtree(TREE, ignore_errors=True)
    package.mkdir(parents=True)
    for entry in (ROOT / "muomni_fast").iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry)
    for name in ("kernels", "reference"):
        (package / name).symlink_to(ROOT / name)
