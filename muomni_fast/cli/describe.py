"""What a file or model is, for `muomni-fast info`."""

import dataclasses
from pathlib import Path
from typing import Any

from ..code_files import SUFFIX, read_codes
from ..codec import SpeechCodec
from ..loading import load
from ..reference import GriffinLimVocoder
from ..reference.audio.files import audio_info
from ..reference.rvq.digest import quantizer_digest
from ..shipped import located
from .places import AUDIO


def describe(given: str) -> dict[str, Any]:
    """Figures of a file of codes, an audio file, or a model, by the path's ending.

    Raises:
        AudioFormatError, CodeFileError, CheckpointError: it cannot be read.
    """
    path = located(given)
    if path.suffix.lower() == SUFFIX:
        codes, info = read_codes(path)
        return {
            "kind": "file of codes",
            "seconds": info.seconds,
            "codes": list(codes.shape),
            "bits_per_second": info.bits_per_second,
            "bytes": path.stat().st_size,
            **dataclasses.asdict(info),
        }
    if path.suffix.lower() in AUDIO:
        header = audio_info(path, streamed=True)
        seconds = header.frames / header.sample_rate
        return {"kind": "audio", "seconds": seconds} | dataclasses.asdict(header)
    model: Any = load(path)
    if not isinstance(model, SpeechCodec):
        return {"kind": type(model).__name__, "config": model.config} | _size(model)
    vocoder: Any = getattr(model.vocoder, "vocoder", model.vocoder)
    steps = model.config.frame_rate / model.frames_per_code
    return {
        "kind": "codec",
        "model": quantizer_digest(model.rvq, model.frames_per_code, model.pooling),
        "codes_per_second": steps * model.rvq.n_codebooks,
        "frames_per_code": model.frames_per_code,
        "pooling": model.pooling,
        "quantizer": model.rvq.config | _size(model.rvq),
        "vocoder": "Griffin-Lim"
        if isinstance(vocoder, GriffinLimVocoder)
        else vocoder.config | _size(vocoder),
        "mel": dataclasses.asdict(model.config),
    }


def lines(found: dict[str, Any], indent: str = "") -> str:
    """A description for people: a line for each entry, those inside an entry moved in."""
    text = []
    for name, value in found.items():
        if isinstance(value, dict):
            text += [f"{indent}{name}:", lines(value, indent + "  ")]
        else:
            text.append(f"{indent}{name}: {value}")
    return "\n".join(text)


def _size(model: Any) -> dict[str, int]:
    return {"parameters": sum(p.numel() for p in model.parameters())}
