"""Checkpoints: safetensors weights beside a JSON config; training state apart; all written
atomically.

A model checkpoint is `<name>.json`, which names its weights file, the weights' sha256, the model's
constructor arguments and the `MelConfig`. Replacing the JSON is the one moment at which a new
checkpoint becomes the checkpoint: whatever happens before leaves the previous one whole.
"""

import dataclasses
import hashlib
import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .atomic import write_atomically
from .audio.mel import MelConfig
from .errors import CheckpointError

M = TypeVar("M", bound=nn.Module)

FORMAT = "muomni_fast"
VERSION = 1
NOT_OURS = (
    "expected the .json of a checkpoint that training here wrote "
    "(published HiFi-GAN files load by HiFiGANVocoder.from_hifigan)"
)


@dataclasses.dataclass(frozen=True)
class ModelCheckpoint:
    """A model checkpoint as read from disk.

    Attributes:
        kind: "rvq" or "vocoder".
        config: the constructor's arguments.
        mel: the settings of the mels the model was trained on.
        state: the state dict.
        extra: what else was saved (the training step, for example).
    """

    kind: str
    config: dict[str, Any]
    mel: MelConfig
    state: dict[str, Tensor]
    extra: dict[str, Any]


def save_model(path: str | Path, kind: str, model: nn.Module, mel: MelConfig, **extra: Any) -> None:
    """Save `model` (with a `config` attribute) as `path` (.json) and a weights file beside it.

    Raises:
        CheckpointError: a file cannot be written; the previous checkpoint is intact.
    """
    safetensors, path = _safetensors(), Path(path)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    weights = safetensors.torch.save(state)
    digest = hashlib.sha256(weights).hexdigest()
    weights_path = path.with_name(f"{path.stem}-{digest[:12]}.safetensors")
    document = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "config": model.config,
        "mel": dataclasses.asdict(mel),
        "weights": weights_path.name,
        "sha256": digest,
        "extra": extra,
    }
    write_atomically(weights_path, weights)
    write_atomically(path, json.dumps(document, indent=2).encode())
    for old in path.parent.glob(f"{path.stem}-{'[0-9a-f]' * 12}.safetensors"):
        if old != weights_path:
            old.unlink()


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        message = 'checkpoints need safetensors: pip install "muomni-fast[train]"'
        raise ModuleNotFoundError(message, name=error.name) from error
    return safetensors


def load_model(path: str | Path, kind: str | None = None) -> ModelCheckpoint:
    """Read a model checkpoint written by `save_model`.

    Raises:
        CheckpointError: a file is missing, malformed or damaged, or holds another kind of model.
    """
    safetensors, path = _safetensors(), Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if "format" not in document:
            raise CheckpointError(f"{path}: {NOT_OURS}")
        if document["format"] != FORMAT or document["version"] != VERSION:
            raise CheckpointError(
                f"{path}: expected {FORMAT} version {VERSION}, "
                f"got {document['format']} version {document['version']}"
            )
        mel = MelConfig(**document["mel"])
        weights_path = path.with_name(Path(document["weights"]).name)
        weights = weights_path.read_bytes()
        if kind is not None and document["kind"] != kind:
            raise CheckpointError(f"{path}: expected a {kind}, got a {document['kind']}")
        digest = hashlib.sha256(weights).hexdigest()
        if digest != document["sha256"]:
            raise CheckpointError(
                f"{weights_path}: sha256 is {digest}, but {path.name} says {document['sha256']}"
            )
        state = safetensors.torch.load(weights)
        config, extra = dict(document["config"]), dict(document["extra"])
        return ModelCheckpoint(document["kind"], config, mel, state, extra)
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: {error.strerror}") from error
    except UnicodeDecodeError as error:  # which holds the whole file
        raise CheckpointError(f"{path}: {NOT_OURS}; it is not text") from error
    except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: {NOT_OURS}: {error!r}") from error


def restore(model_class: type[M], saved: ModelCheckpoint, source: str | Path) -> M:
    """The model that a checkpoint holds, in eval mode.

    Raises:
        CheckpointError: its config or its weights do not fit `model_class`; names `source`.
    """
    try:
        model = model_class(**saved.config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: not a config of {saved.kind}: {error}") from error
    load_state(model, saved.state, source)
    return model.eval()


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load a state dict strictly.

    Raises:
        CheckpointError: keys are missing, extra or reshaped, or dtypes differ; lists all of them.
    """
    own = model.state_dict()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{source}: does not fit the model: {error}") from error
    cast = [
        f"{name}: {state[name].dtype} -> {own[name].dtype}"
        for name in own.keys() & state.keys()
        if state[name].dtype != own[name].dtype
    ]
    if cast:
        raise CheckpointError(f"{source}: dtypes differ: " + ", ".join(sorted(cast)))


def save_training_state(path: str | Path, state: dict[str, Any]) -> None:
    """Save what resuming needs (models, optimisers, random generators) as one file.

    The file is the sha256 of what follows, in 64 hexadecimal digits, then what `torch.save` wrote.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_atomically(path, hashlib.sha256(content).hexdigest().encode() + content)


def load_training_state(path: str | Path) -> dict[str, Any]:
    """Read what `save_training_state` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or holds anything but plain data.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    digest, content = content[:64], content[64:]
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise CheckpointError(f"{path}: damaged: its sha256 is not the one it was written with")
    return _load_plain(io.BytesIO(content), path)


def load_foreign_checkpoint(path: str | Path, key: str) -> dict[str, Tensor]:
    """The state dict under `key` in another project's `.pt` file; plain data only, on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, lacks `key`, or would run code.
    """
    content = _load_plain(path, path)
    if not isinstance(content, dict) or not isinstance(content.get(key), dict):
        raise CheckpointError(f"{path}: expected a dict with the key {key!r}")
    return {name.removeprefix("_orig_mod."): value for name, value in content[key].items()}


def _load_plain(source: str | Path | io.BytesIO, path: str | Path) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:  # whose text is advice to load it unsafely
        raise CheckpointError(f"{path}: damaged, or holds more than plain data") from error
    except (EOFError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: damaged, or not plain data: {type(error).__name__}: {error}"
        ) from error
