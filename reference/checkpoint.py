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
    extra       what else was saved: the training step, `frames_per_code`, `pooling`
    digest      sha256 of all of the above, as JSON with sorted keys and no spaces, in ASCII

Version 1 had no digest: it loads, with a warning. Replacing the JSON is the one moment at which a
new checkpoint becomes the checkpoint: whatever happens before leaves the previous one whole.
"""

import dataclasses
import glob
import hashlib
import io
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .atomic import write_atomically
from .audio.mel import MelConfig
from .errors import CheckpointError
from .reading import (
    MOST_JSON,
    blaming,
    load_plain,
    parse_json,
    read_json,
    read_layout,
    read_regular,
    safetensors_library,
)
from .values import held_by_file, require_dict, require_int, require_text, shown

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
        CheckpointError: a file cannot be written, a weight is not finite, or a name or `extra`
            could not be read again; the previous checkpoint is intact.
        TypeError: `extra` holds objects that JSON does not know.
    """
    safetensors, path = safetensors_library(), Path(path)
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
    # As it will be read: keys are strings, for example; what would not load is not saved.
    wrong = "cannot be saved"
    document = parse_json(json.dumps(document).encode(), path, wrong)
    document[DIGEST] = digest_of(document)
    content = json.dumps(document, indent=2).encode()
    with blaming(f"{path}: {wrong}"):
        _require_texts(document)
        if len(content) > MOST_JSON:
            raise ValueError(f"expected at most {MOST_JSON:,} bytes of JSON, got {len(content):,}")
        for name, value in state.items():
            if not value.isfinite().all():
                raise ValueError(f"{name} holds a value that is not finite")
    write_atomically(weights_path, weights)
    write_atomically(path, content)
    for old in path.parent.glob(f"{glob.escape(path.stem)}-{'[0-9a-f]' * 12}.safetensors"):
        if old != weights_path:
            old.unlink()


def digest_of(document: Mapping[str, Any]) -> str:
    """The digest of a checkpoint's document: of everything in it but the digest itself."""
    content = {name: value for name, value in document.items() if name != DIGEST}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def load_model(path: str | Path, kind: str | None = None) -> ModelCheckpoint:
    """Read a model checkpoint written by `save_model`.

    Args:
        path: of the `.json`.
        kind: that it must hold.

    Raises:
        CheckpointError: a file is missing, malformed or damaged, or holds another kind of model.
    """
    return _read_weights(Path(path), read_document(Path(path), kind))


def weights_digest(path: str | Path, kind: str) -> str:
    """The sha256 of a checkpoint's weights, as its document has it.

    Raises:
        CheckpointError: as `load_model`, of the `.json` alone.
    """
    return read_document(Path(path), kind)["sha256"]


def restore(model_class: type[M], path: str | Path, kind: str) -> tuple[M, ModelCheckpoint]:
    """The model that a checkpoint holds, in eval mode, and the checkpoint.

    Whether the weights file can hold the model is known before either takes memory: a class says
    how large it is by `values.require_parameters`. Names, shapes and dtypes are compared with the
    file's before its weights are read.

    Raises:
        CheckpointError: as `load_model`, or config or weights do not fit `model_class`.
    """
    path = Path(path)
    document = read_document(path, kind)
    weights_path = path.with_name(document["weights"])
    layout = read_layout(weights_path)
    try:
        with held_by_file(sum(tensor.nbytes for tensor in layout.values())):
            model = model_class(**document["config"])
    except (TypeError, ValueError, RuntimeError) as error:  # torch refuses sizes by the last
        raise CheckpointError(f"{path}: not a config of {kind}: {error}") from error
    require_fit(model, layout, weights_path)
    saved = _read_weights(path, document)
    load_state(model, saved.state, path)
    return model.eval(), saved


def read_document(path: Path, kind: str | None) -> dict[str, Any]:
    """A checkpoint's document without its weights: its digest and types checked, `mel` a MelConfig.

    Raises:
        CheckpointError: as `load_model`, of the `.json` alone.
    """
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
        _require_texts(document)
        document["mel"] = MelConfig(**document["mel"])
    if kind is not None and document["kind"] != kind:
        raise CheckpointError(f"{path}: expected a {kind}, got a {document['kind']}")
    return document


def _read_weights(path: Path, document: Mapping[str, Any]) -> ModelCheckpoint:
    """The checkpoint whose document was read from `path`."""
    safetensors = safetensors_library()
    weights_path = path.with_name(document["weights"])
    weights = read_regular(weights_path)
    digest = hashlib.sha256(weights).hexdigest()
    if digest != document["sha256"]:
        raise CheckpointError(
            f"{weights_path}: sha256 is {digest}, but {path.name} says {document['sha256']}"
        )
    try:
        state = safetensors.torch.load(weights)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{weights_path}: not a safetensors file: {error}") from error
    kind, config, mel, extra = (document[name] for name in ("kind", "config", "mel", "extra"))
    return ModelCheckpoint(kind, config, mel, state, extra)


def _require_texts(document: Mapping[str, Any]) -> None:
    for name, expected in TEXTS.items():
        if not re.fullmatch(expected, require_text(name, document[name])):
            raise ValueError(f"{name}: expected {expected}, got {shown(document[name])}")


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load a state dict strictly.

    Raises:
        CheckpointError: keys are missing, extra or reshaped, or dtypes differ; lists all of them.
    """
    given: dict[str, Tensor] = {}  # under the model's names, and in its form
    # The model's own hooks come first.
    handle = model.register_load_state_dict_pre_hook(lambda _, final, *rest: given.update(final))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{source}: does not fit the model: {error}") from error
    finally:
        handle.remove()
    cast = [
        f"{name}: {given[name].dtype} -> {own.dtype}"
        for name, own in model.state_dict().items()
        if given[name].dtype != own.dtype
    ]
    if cast:
        raise CheckpointError(f"{source}: dtypes differ: " + ", ".join(sorted(cast)))


def require_fit(model: nn.Module, layout: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise unless a file holds the tensors that the model has, whatever their values.

    Raises:
        CheckpointError: keys are missing, extra or reshaped, or dtypes differ; lists all of them.
    """
    own = model.state_dict()
    wrong = [f"lacks {name}" for name in own if name not in layout]
    wrong += [f"has {shown(name)} besides" for name in layout if name not in own]
    for name in own.keys() & layout.keys():
        kinds = [f"{tuple(t.shape)} {t.dtype}" for t in (layout[name], own[name])]
        if kinds[0] != kinds[1]:
            wrong.append(f"{name}: {kinds[0]} -> {kinds[1]}")
    if wrong:
        raise CheckpointError(f"{source}: does not fit the model: " + ", ".join(sorted(wrong)))


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
    return load_plain(io.BytesIO(content), path)
