"""Changes of what transformers has saved."""

import json
from pathlib import Path
from typing import Any


def edit(folder: Path, **entries: Any) -> None:
    """Change a config; an entry that is `...` is taken out."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | entries
    file.write_text(json.dumps({n: value for n, value in config.items() if value is not ...}))


def rewrite(folder: Path, change: Any) -> None:
    """Change the weights: in place, or by others that are returned."""
    from safetensors.torch import load_file, save_file  # which tests may lack

    file = folder / "model.safetensors"
    state = load_file(file)
    changed = change(state)
    save_file(changed if isinstance(changed, dict) else state, file)
