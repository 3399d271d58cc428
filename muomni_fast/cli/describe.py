"""What a file, model or folder is, for `muomni-fast info`."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..code_files import SUFFIX, CodeInfo, read_codes
from ..codec import SpeechCodec
from ..loading import KINDS, load
from ..reference import GriffinLimVocoder
from ..reference.audio.files import audio_info
from ..reference.errors import CheckpointError, CodeFileError
from ..reference.rvq.digest import quantizer_digest
from ..shipped import located
from . import exports
from .models import inside
from .places import AUDIO, found_in
from .report import FAULTS

CODES: dict[str, Callable[[Path], CodeInfo]] = {
    SUFFIX: lambda path: read_codes(path)[1],
    ".npz": exports.read_npz,
    ".parquet": exports.read_parquet,
}


def describe(given: str, part: str | None = None) -> dict[str, Any]:
    """Figures of a file of codes, an audio file, a model, or a folder of files, by the path's
    ending and what is there; where a `part` is named, of that part of a model.

    Raises:
        AudioFormatError, CodeFileError, CheckpointError: it cannot be read.
    """
    path = located(given)
    suffix = "" if part is not None or path.is_dir() else path.suffix.lower()
    if suffix in CODES:
        return _codes(path)
    if suffix in AUDIO:
        header = audio_info(path, streamed=True)
        seconds = header.frames / header.sample_rate
        return {"kind": "audio", "seconds": seconds} | dataclasses.asdict(header)
    try:
        model: Any = load(path, part)
    except CheckpointError:
        plain = part is None and not _has_a_model(path)
        files = [*found_in(path, (*CODES, *AUDIO))] if plain else []
        if not files:
            raise
        return _folder(files)
    if not isinstance(model, SpeechCodec):
        return {"kind": type(model).__name__, "config": model.config} | _size(model)
    vocoder = inside(model.vocoder)
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


def lines(found: dict[str, Any]) -> str:
    """A description for people: a line for each entry; of a folder, one for each file."""
    if found.get("kind") != "folder":
        return "\n".join(_lines(found, ""))
    text = [f"{found['path']}: {found['count']:,} files, {found['seconds']:.1f} s"]
    return "\n".join([*text, *(_line(file) for file in found["files"])])


def failed(found: dict[str, Any]) -> bool:
    """Whether something of it could not be read."""
    return "error" in found or any(map(failed, found.get("files", ())))


def _codes(path: Path) -> dict[str, Any]:
    """Figures of a file of codes, or of one to train on."""
    if path.suffix.lower() == ".parquet" and not exports.has_pyarrow():
        raise CodeFileError(f"{path}: reading it needs pyarrow: pip install pyarrow")
    info = CODES[path.suffix.lower()](path)
    return {
        "kind": "file of codes" if path.suffix.lower() == SUFFIX else "codes to train on",
        "seconds": info.seconds,
        "codes": [info.steps, info.n_codebooks],
        "bits_per_second": info.bits_per_second,
        "bytes": path.stat().st_size,
        **dataclasses.asdict(info),
    }


def _folder(files: list[Path]) -> dict[str, Any]:
    """Figures of each file of codes and audio file in a folder."""
    entries: list[dict[str, Any]] = []
    for file in files:
        try:
            entries.append({"path": str(file)} | describe(str(file)))
        except FAULTS as error:
            entries.append({"path": str(file), "error": str(error)})
    seconds = sum(entry.get("seconds", 0.0) for entry in entries)
    return {"kind": "folder", "count": len(entries), "seconds": seconds, "files": entries}


def _has_a_model(path: Path) -> bool:
    """Whether a folder holds files of a model, which cannot be read then."""
    if not path.is_dir():
        return True
    names = [f"{kind}.json" for kind in KINDS]
    ours = any(
        (folder / name).is_file() for folder in (path, path / "checkpoints") for name in names
    )
    return ours or any(path.glob("config*.json"))


def _lines(found: dict[str, Any], indent: str) -> Iterator[str]:
    for name, value in found.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{name}: {value}"


def _line(file: dict[str, Any]) -> str:
    """A file of a folder in one line."""
    if "error" in file:
        return f"error: {file['error']}"
    text = f"{file['path']}: {file['seconds']:.2f} s, "
    if file["kind"] == "audio":
        return text + f"{file['sample_rate']} Hz"
    size, rate = file["codebook_size"], file["bits_per_second"]
    return text + f"{file['n_codebooks']} x {size} codes, {rate:.0f} bits/s"


def _size(model: Any) -> dict[str, int]:
    return {"parameters": sum(p.numel() for p in model.parameters())}
