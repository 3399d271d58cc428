"""What people have on disk, as the module it is; and the way back.

`load` knows what training here leaves (a run's folder, a checkpoint's `.json`), folders of
HiFi-GAN's own code and of what was made of it, folders that transformers has saved, and files of
weights in which a quantizer or a generator is to be found. It takes paths only, and never runs what
a file holds.
"""

import logging
from pathlib import Path
from typing import Any

from torch import nn

from . import reference
from .codec import SpeechCodec
from .reference.atomic import make_folder
from .reference.audio.mel import MelConfig
from .reference.checkpoint import read_document, restore, save_model
from .reference.errors import CheckpointError
from .reference.values import require_text, shown
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


def load(path: str | Path, part: str | None = None) -> nn.Module:
    """The module that a file or folder holds, in eval mode, on the CPU, in float32.

    What was found is logged (logger `muomni_fast`, INFO).

    Args:
        path: a run's folder, or one that `save` wrote a codec to (gives a `SpeechCodec`, or the
            only part there is); a checkpoint's `.json`; a folder with a `config*.json` of
            HiFi-GAN's own code and its weights; a folder that transformers' `save_pretrained`
            wrote, of a family in docs/families.md or a model with one inside; or a file of weights
            (`.safetensors`, its `.index.json` where there are several, or plain data that torch
            saved, alone or under "generator", "model", "state_dict" or "model_state_dict"). A
            generator's file has its config beside it, or `HiFiGANVocoder`'s default sizes. A
            `config*.json` stands for the folder that it lies in. Where nothing is, the name of a
            model that comes with the library: "muomni-62", or "muomni-62-small", which has a
            vocoder.
        part: what the part's keys begin with, "decoder." say, where a file of weights holds several
            parts; "" for one whose keys begin with nothing; "semantic" or "acoustic" of Mimi's.

    Returns:
        `RVQ`, `HiFiGANVocoder`, `Talker` or `SpeechCodec`, with a Talker where its folder has one.
        A part is loaded strictly, so keys inside it that are not known are refused; keys outside it
        are counted in the log.

    Raises:
        CheckpointError: nothing that is known is there, or several things are; a file is damaged,
            or would run code; a config is missing or wrong; keys of the part are missing, extra or
            reshaped, of which all are listed; or `part` is given for what was saved here.
        TypeError: `part` is no string.
    """
    path = located(path)
    if part is not None:
        require_text("part", part)
    if path.is_dir():
        return _from_folder(path, part)
    if path.suffix == ".json" and not path.name.endswith(".index.json"):  # of several files
        _require_whole(path, part)
        kind = read_document(path, None)["kind"]
        if kind not in KINDS:
            raise CheckpointError(f"{path}: expected one of {', '.join(KINDS)}, got a {kind}")
        log.info("%s: a %s that was saved here", path, kind)
        return restore(KINDS[kind], path, kind)[0]
    from .weight_files import load_part

    return load_part(path, part)


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
        trained: dict[str, Any] = {}
        if isinstance(vocoder, reference.NeuralVocoder):
            if vocoder.decoded_mels is not None:
                trained["decoded_mels"] = vocoder.decoded_mels
            vocoder = vocoder.vocoder
        settings = {"frames_per_code": model.frames_per_code, "pooling": model.pooling}
        if not isinstance(vocoder, reference.GriffinLimVocoder):  # which has no weights
            save(vocoder, folder / "vocoder.json", model.config, **trained | extra)
        if model.talker is not None:
            save(model.talker, folder / "talker.json", model.config, **extra)
        save(model.rvq, folder / "rvq.json", model.config, **settings, **extra)
        return
    kind = next((kind for kind, known in KNOWN.items() if isinstance(model, known)), None)
    if kind is None or mel is None:
        got = type(model).__name__
        raise TypeError(f"model: expected an RVQ, HiFiGANVocoder, Talker or SpeechCodec, got {got}")
    save_model(path, kind, model, mel, **extra)


def _require_whole(path: Path, part: str | None) -> None:
    if part is not None:
        raise CheckpointError(
            f"{path}: was saved here, and has no parts to be named: expected part None, "
            f"got {shown(part)}"
        )


def _from_folder(path: Path, part: str | None) -> nn.Module:
    """What is in a folder: of a run, of a codec, or of another library's model."""
    from .weight_files import SUFFIXES, load_part, weights_in  # and what knows all families

    for folder in (path / "checkpoints", path):
        ours = {kind: folder / f"{kind}.json" for kind in KINDS}
        there = [kind for kind, file in ours.items() if file.is_file()]
        if there:
            _require_whole(folder, part)
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
    file = weights_in(path)
    if file is None:
        raise CheckpointError(
            f"{path}: expected rvq.json or vocoder.json (here or in checkpoints/), or weights "
            f"({', '.join(SUFFIXES)}) with or without a config*.json"
        )
    return load_part(file, part)
