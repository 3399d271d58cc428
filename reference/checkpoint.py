"""Checkpoints: safetensors weights beside a JSON config; training state apart; all written
atomically.

A model checkpoint is `<name>.json`. In version 2 it holds exactly

    format      "muomni_fast"
    version     2
    kind        "rvq", "vocoder", or the name of another stage
    config      the constructor's arguments
    mel         the `MelConfig`
    weights     the name of the safetensors file beside it
    sha256      of that file
    extra       what else was saved: the training step, `frames_per_code`
    digest      sha256 of all of the above, as JSON with sorted keys and no spaces, in ASCII

Version 1 had no digest: it loads, with a warning. Replacing the JSON is the one moment at which a
new checkpoint becomes the checkpoint: whatever happens before leaves the previous one whole.
"""

import dataclasses
import hashlib
import io
import json
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor, nn

from .atomic import write_atomically
from .audio.mel import MelConfig
from .errors import CheckpointError
from .reading import blaming, open_regular, read_json, read_layout, read_regular
from .values import require_dict, require_int, require_text, shown

log = logging.getLogger(__name__)
M = TypeVar("M", bound=nn.Module)

FORMAT = "muomni_fast"
VERSION = 2
KEYS = {"format", "version", "kind", "config", "mel", "weights", "sha256", "extra"}
DIGEST = "digest"
TEXTS = {  # what they match; a file's name is one beside the document, in no other folder
    "kind": r"[\w-]{1,64}",
    "weights": r"[^/\\\0]{1,200}\.safetensors",
    "sha256": r"[0-9a-f]{64}",
}
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
        TypeError, ValueError: config or `extra` hold what JSON cannot: NaN, for example.
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
    document[DIGEST] = digest_of(document)
    write_atomically(weights_path, weights)
    write_atomically(path, json.dumps(document, indent=2).encode())
    for old in path.parent.glob(f"{path.stem}-{'[0-9a-f]' * 12}.safetensors"):
        if old != weights_path:
            old.unlink()


def digest_of(document: Mapping[str, Any]) -> str:
    """The digest of a checkpoint's document: of everything in it but the digest itself.

    Raises:
        TypeError, ValueError: it holds what JSON cannot.
    """
    content = {name: value for name, value in document.items() if name != DIGEST}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        message = 'checkpoints need safetensors: pip install "muomni-fast[train]"'
        raise ModuleNotFoundError(message, name=error.name) from error
    return safetensors


def load_model(
    path: str | Path, kind: str | None = None, model_class: type[nn.Module] | None = None
) -> ModelCheckpoint:
    """Read a model checkpoint written by `save_model`.

    Args:
        path: of the `.json`.
        kind: that it must hold.
        model_class: whose state dict it must hold. Names, shapes and dtypes are compared before
            the weights are read, so that no file takes more memory than its model.

    Raises:
        CheckpointError: a file is missing, malformed or damaged, or holds another kind of model.
    """
    safetensors, path = _safetensors(), Path(path)
    document = _read_document(path)
    with blaming(path):
        mel = MelConfig(**document["mel"])
    if kind is not None and document["kind"] != kind:
        raise CheckpointError(f"{path}: expected a {kind}, got a {document['kind']}")
    weights_path = path.with_name(document["weights"])
    saved = ModelCheckpoint(document["kind"], document["config"], mel, {}, document["extra"])
    if model_class is not None:
        with torch.device("meta"):
            model = _build(model_class, saved, path)
        require_fit(model, read_layout(weights_path), weights_path)
    weights = read_regular(weights_path)
    digest = hashlib.sha256(weights).hexdigest()
    if digest != document["sha256"]:
        raise CheckpointError(
            f"{weights_path}: sha256 is {digest}, but {path.name} says {document['sha256']}"
        )
    try:
        return dataclasses.replace(saved, state=safetensors.torch.load(weights))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{weights_path}: not a safetensors file: {error}") from error


def _read_document(path: Path) -> dict[str, Any]:
    """A checkpoint's document, its digest and its types checked."""
    document = read_json(path, NOT_OURS)
    if document.get("format") != FORMAT:
        raise CheckpointError(f"{path}: {NOT_OURS}")
    with blaming(path):
        version = require_int("version", document.get("version"), 1)
        if version > VERSION:
            raise CheckpointError(
                f"{path}: expected {FORMAT} version 1 to {VERSION}, got version {version}"
            )
        wanted = KEYS if version == 1 else KEYS | {DIGEST}
        if document.keys() != wanted:
            raise CheckpointError(
                f"{path}: damaged: lacks {sorted(wanted - document.keys())}, "
                f"has besides {shown(sorted(document.keys() - wanted))}"
            )
        if version == 1:
            log.warning(
                "%s: a checkpoint of version 1: nothing tells whether its settings were edited",
                path,
            )
        elif document[DIGEST] != digest_of(document):
            raise CheckpointError(
                f"{path}: edited or damaged: its digest is {digest_of(document)}, "
                f"but it says {shown(document[DIGEST])}"
            )
        for name in ("config", "mel", "extra"):
            require_dict(name, document[name])
        for name, expected in TEXTS.items():
            if not re.fullmatch(expected, require_text(name, document[name])):
                raise ValueError(f"{name}: expected {expected}, got {shown(document[name])}")
    return document


def restore(
    model_class: type[M], path: str | Path, kind: str | None = None
) -> tuple[M, ModelCheckpoint]:
    """The model that a checkpoint holds, in eval mode, and the checkpoint.

    Raises:
        CheckpointError: as `load_model`, or config or weights do not fit `model_class`.
    """
    saved = load_model(path, kind, model_class)
    model = _build(model_class, saved, path)
    load_state(model, saved.state, path)
    return model.eval(), saved


def _build(model_class: type[M], saved: ModelCheckpoint, path: str | Path) -> M:
    try:
        return model_class(**saved.config)
    except (TypeError, ValueError, RuntimeError) as error:  # torch refuses sizes by the last
        raise CheckpointError(f"{path}: not a config of {saved.kind}: {error}") from error


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


def require_fit(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise what `load_state` would for shapes and dtypes, without memory for either.

    Args:
        model: made on the meta device.
        state: on any device; values are not read.
        source: the file at fault.

    Raises:
        CheckpointError: as `load_state`, or `state` holds something else than tensors.
    """
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            got = f"a {type(value).__name__} by {shown(name)}"
            raise CheckpointError(f"{source}: expected tensors by name, got {got}")
    load_state(model, {name: value.to("meta") for name, value in state.items()}, source)


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
    content = read_regular(path)
    digest, content = content[:64], content[64:]
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise CheckpointError(f"{path}: damaged: its sha256 is not the one it was written with")
    return _load_plain(io.BytesIO(content), path)


def load_foreign(path: str | Path) -> Any:
    """What another project's file holds, on the CPU: `.safetensors`, or plain data that torch
    saved.

    Raises:
        CheckpointError: it is missing, no regular file, damaged, or would run code.
    """
    if Path(path).suffix == ".safetensors":
        safetensors = _safetensors()
        read_layout(path)  # bounds what is made of it
        try:
            return safetensors.torch.load(read_regular(path))
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{path}: not a safetensors file: {error}") from error
    with open_regular(path) as (file, _):
        return _load_plain(file, path)


def _load_plain(source: BinaryIO, path: str | Path) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose text is advice to load it unsafely
        raise CheckpointError(f"{path}: damaged, or holds more than plain data") from error
    except (EOFError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: damaged, or not plain data: {type(error).__name__}: {error}"
        ) from error
