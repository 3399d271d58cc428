"""What people have on disk, as the module it is; and the way back.

`load` knows what training here leaves (a run's folder, a checkpoint's `.json`), folders of
HiFi-GAN's own code and of what was made of it, and files of weights in which a quantizer or a
generator is to be found. It takes paths only, and never runs what a file holds.
"""

import collections
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from . import reference
from .codec import SpeechCodec
from .reference.atomic import make_folder
from .reference.audio.mel import MelConfig
from .reference.checkpoint import load_state, read_document, restore, save_model
from .reference.checks import require_hop
from .reference.errors import CheckpointError
from .reference.reading import blaming, read_json
from .reference.values import held_by_file, shown
from .reference.vocoder.published import (
    ARGUMENTS,
    foreign_state,
    generator_arguments,
    plain_tensors,
)
from .rvq.modules import RVQ
from .shipped import MODELS, located
from .talker.modules import Talker
from .vocoder.modules import HiFiGANVocoder

log = logging.getLogger("muomni_fast")

SHIPPED_MODEL = MODELS / "muomni-62"
"""Folder of a codec for `load`: a quantizer of read English at 3.5 kbit/s, without a vocoder; its
MODEL_CARD.md lies there too."""

KINDS: dict[str, type[Any]] = {"rvq": RVQ, "vocoder": HiFiGANVocoder, "talker": Talker}
KNOWN: dict[str, type[Any]] = {  # and so ours, their subclasses
    "rvq": reference.RVQ,
    "vocoder": reference.HiFiGANVocoder,
    "talker": reference.Talker,
}
OPTIONAL = "vocoder", "talker"  # parts of a codec
SUFFIXES = ".safetensors", ".pt", ".pth", ".bin", ".ckpt"
# What all keys of a part look like, after what they all begin with, and one that each part has.
KEYS = {
    "rvq": (r"(codebooks\.\d+|proj_in|proj_out)\..+", r"codebooks\.0\.weight"),
    "vocoder": (
        r"(conv_pre|conv_post|ups\.\d+|resblocks\.\d+)\..+",
        r"conv_pre\.(weight|weight_v|parametrizations\.weight\.original1)",
    ),
}


def load(path: str | Path, part: str | None = None) -> nn.Module:
    """The module that a file or folder holds, in eval mode, on the CPU, in float32.

    What was found is logged (logger `muomni_fast`, INFO).

    Args:
        path: a run's folder, or one that `save` wrote a codec to (gives a `SpeechCodec`, or the
            only part there is); a checkpoint's `.json`; a folder with a `config*.json` of
            HiFi-GAN's own code and its weights; or a file of weights (`.safetensors`, or plain data
            that torch saved, alone or under "generator", "model", "state_dict" or
            "model_state_dict"). A generator's file has its config beside it, or
            `HiFiGANVocoder`'s default sizes. Where nothing is, the name of a model that comes with
            the library: "muomni-62".
        part: what the part's keys begin with, "decoder." say, where a file of weights holds several
            parts; "" for one whose keys begin with nothing.

    Returns:
        `RVQ`, `HiFiGANVocoder`, `Talker` or `SpeechCodec`, with a Talker where its folder has one.
        A part is loaded strictly; keys outside it are counted in the log.

    Raises:
        CheckpointError: nothing that is known is there, or several things are; a file is damaged,
            or would run code; a config is missing or wrong; keys of the part are missing, extra or
            reshaped, of which all are listed.
    """
    path = located(path)
    if path.is_dir():
        return _from_folder(path, part)
    if path.suffix == ".json":
        kind = read_document(path, None)["kind"]
        if kind not in KINDS:
            raise CheckpointError(f"{path}: expected one of {', '.join(KINDS)}, got a {kind}")
        log.info("%s: a %s that was saved here", path, kind)
        return restore(KINDS[kind], path, kind)[0]
    return _from_weights(path, part)


def save(model: nn.Module, path: str | Path, mel: MelConfig | None = None, **extra: Any) -> None:
    """Save a module such that `load` gives it again: JSON and safetensors, with their digests.

    Args:
        model: an `RVQ`, `HiFiGANVocoder` or `Talker`, or a `SpeechCodec` of them.
        path: of the `.json`; of a codec, a folder.
        mel: settings of the mels that a part was trained with; a codec has them itself.
        extra: kept with it, as JSON.

    Raises:
        CheckpointError: a file cannot be written, or a weight is not finite.
        TypeError: no such module, or `extra` holds objects that JSON does not know.
        ValueError: `mel` is missing, or given for a codec.
    """
    whole = isinstance(model, reference.SpeechCodec)
    if whole == (mel is not None):
        expected = "None, as a codec has its own" if whole else "those it was trained with"
        raise ValueError(f"mel: expected {expected}, got {mel}")
    if isinstance(model, reference.SpeechCodec):
        folder, vocoder = Path(path), model.vocoder
        make_folder(folder)
        if isinstance(vocoder, reference.NeuralVocoder):
            vocoder = vocoder.vocoder
        settings = {"frames_per_code": model.frames_per_code, "pooling": model.pooling}
        if not isinstance(vocoder, reference.GriffinLimVocoder):  # which has no weights
            save(vocoder, folder / "vocoder.json", model.config, **extra)
        if model.talker is not None:
            save(model.talker, folder / "talker.json", model.config, **extra)
        save(model.rvq, folder / "rvq.json", model.config, **settings, **extra)
        return
    kind = next((kind for kind, known in KNOWN.items() if isinstance(model, known)), None)
    if kind is None or mel is None:
        got = type(model).__name__
        raise TypeError(f"model: expected an RVQ, HiFiGANVocoder, Talker or SpeechCodec, got {got}")
    save_model(path, kind, model, mel, **extra)


def _from_folder(path: Path, part: str | None) -> nn.Module:
    """What is in a folder: of a run, of a codec, or of a generator's own code."""
    for folder in (path / "checkpoints", path):
        ours = {kind: folder / f"{kind}.json" for kind in KINDS}
        there = [kind for kind, file in ours.items() if file.is_file()]
        if "rvq" in there:
            vocoder, talker = (ours[kind] if kind in there else None for kind in OPTIONAL)
            log.info(
                "%s: a codec, %s%s",
                *(folder, "with a vocoder" if vocoder else "Griffin-Lim"),
                ", with a Talker" if talker else "",
            )
            return SpeechCodec.from_checkpoints(ours["rvq"], vocoder, talker)
        if there:
            return load(ours[there[0]])
    files = _weights(path)
    if not files and not _configs(path):
        raise CheckpointError(
            f"{path}: expected rvq.json or vocoder.json (here or in checkpoints/), or weights "
            f"({', '.join(SUFFIXES)}) with or without a config*.json"
        )
    return _from_weights(_only(path, files), part)


def _weights(path: Path) -> list[Path]:
    """Files of weights in a folder; of a training's generators (`g_00001000`), the last; without
    its discriminators."""
    files = [
        file
        for file in sorted(path.iterdir())
        if file.is_file() and (file.suffix in SUFFIXES or re.match("g_|generator", file.name))
    ]
    generators = [file for file in files if re.fullmatch(r"g_\d+", file.name)]
    if not generators:
        return files
    last = max(generators, key=lambda file: int(file.name[2:]))
    return [last, *(file for file in files if file not in generators)]


def _only(path: Path, files: list[Path]) -> Path:
    if len(files) != 1:
        names = shown([file.name for file in files])
        raise CheckpointError(f"{path}: expected one file of weights, got {names}; name one")
    return files[0]


def _configs(folder: Path) -> list[Path]:
    """Configs of generators in a folder."""
    files = sorted(folder.glob("config*.json"))
    return [file for file in files if ARGUMENTS[0] in read_json(file, "not a config")]


def _from_weights(path: Path, part: str | None) -> nn.Module:
    """The part that a file of weights holds."""
    state = foreign_state(path)
    found = [
        (kind, match[1])
        for kind, (_, mark) in KEYS.items()
        for name in state
        if isinstance(name, str) and (match := re.fullmatch(rf"((?:.*\.)?){mark}", name))
    ]
    chosen = [(kind, prefix) for kind, prefix in found if part in (None, prefix)]
    if len(chosen) != 1:
        names = [f"{kind} at {prefix!r}" for kind, prefix in found] or "none"
        raise CheckpointError(
            f"{path}: expected keys of one quantizer or generator"
            f"{'' if part is None else f' at {part!r}'}, got {shown(names)}"
            f"{'; name its `part`' if len(found) > 1 else ''}"
        )
    ((kind, prefix),) = chosen
    within = re.compile(re.escape(prefix) + KEYS[kind][0])
    inside = {name[len(prefix) :]: value for name, value in state.items() if within.fullmatch(name)}
    outside = collections.Counter(
        name.split(".")[0] for name in state if not within.fullmatch(name)
    )
    tensors = plain_tensors(path, inside)
    log.info(
        "%s: a %s, %d tensors at %r%s",
        *(path, kind, len(inside), prefix),
        "".join(f"; left out: {count} of {name}" for name, count in sorted(outside.items())),
    )
    if kind == "rvq":
        with blaming(path):
            model: Any = RVQ(**_quantizer_sizes(path, tensors))
        load_state(model, tensors, path)
        return model.eval()
    return _generator(path, tensors)


def _generator(path: Path, state: dict[str, Tensor]) -> nn.Module:
    """A generator with these weights, as the config beside them says it is."""
    configs = _configs(path.parent)
    if len(configs) > 1:
        names = shown([file.name for file in configs])
        raise CheckpointError(f"{path}: expected one config beside it, got {names}")
    if configs:
        arguments, hop = generator_arguments(configs[0])
        with blaming(configs[0]), held_by_file(sum(value.nbytes for value in state.values())):
            model = HiFiGANVocoder(**arguments)
            require_hop(model.hop_length, hop)
    else:
        log.info("%s: no config*.json beside it: HiFiGANVocoder's default sizes", path)
        model = HiFiGANVocoder()
    load_state(model, state, path)
    return model.eval()


def _quantizer_sizes(path: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `RVQ` for weights, which say all of them."""
    first, projection = state["codebooks.0.weight"], state.get("proj_in.weight")
    for name, value in (("codebooks.0.weight", first), ("proj_in.weight", projection)):
        if value is not None and value.ndim != 2:
            got = tuple(value.shape)
            raise CheckpointError(f"{path}: {name}: expected two dimensions, got {got}")
    return {
        "n_codebooks": sum(name.startswith("codebooks.") for name in state),
        "codebook_size": first.shape[0],
        "codebook_dim": first.shape[1],
        "n_mels": first.shape[1] if projection is None else projection.shape[-1],
        "projections": projection is not None,
        "bias": "proj_in.bias" in state,
    }
