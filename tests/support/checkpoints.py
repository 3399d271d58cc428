"""Checkpoints on disk, to be changed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from muomni_fast.reference import checkpoint


def weights_of(path: Path) -> Path:
    """The weights file of a checkpoint."""
    return path.with_name(json.loads(path.read_text())["weights"])


def rewrite(path: Path, version: int = 2, **changes: Any) -> None:
    """Change a checkpoint's document, with the digest that it then needs."""
    document = json.loads(path.read_text()) | changes | {"version": version}
    document["digest"] = checkpoint.digest_of(document)
    if version == 1:
        del document["digest"]
    path.write_text(json.dumps(document))


def rewrite_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Other weights for a checkpoint, with the digests that they need."""
    import safetensors.torch  # which tests may lack

    content = safetensors.torch.save(state)
    weights_of(path).write_bytes(content)
    rewrite(path, sha256=hashlib.sha256(content).hexdigest())
