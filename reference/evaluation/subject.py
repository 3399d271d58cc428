"""What is evaluated: the models of a run folder, or of plain checkpoints."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..audio.mel import MelConfig, require_same_mel
from ..checkpoint import load_model
from ..checks import require_hop, require_n_mels
from ..codec import SpeechCodec
from ..errors import CheckpointError, DataError
from ..reading import blaming
from ..training.clips import Clip, find_clips, split_clips
from ..training.run import source_of
from ..training.run_folder import RunFolder
from ..vocoder.hifigan import HiFiGANVocoder
from ..vocoder.neural import NeuralVocoder

KINDS = ("rvq", "vocoder", "talker")  # of checkpoints that rows are made with


@dataclasses.dataclass(frozen=True)
class Subject:
    """What makes the sounds that are judged.

    Attributes:
        mel: of all its models.
        files: what was read, by kind of checkpoint; "hifigan" is a published generator.
        hifigan: from log-mels to audio, if there is one.
        codecs: by the name of their vocoder, if there is a quantizer; with the Talker, if there is
            one.
        folder: of the run, if it is one.
    """

    mel: MelConfig
    files: dict[str, Path]
    hifigan: nn.Module | None
    codecs: dict[str, SpeechCodec]
    folder: RunFolder | None = None


def open_subject(paths: Sequence[str], published: Sequence[str] | None = None) -> Subject:
    """Read the models that a command line names.

    Args:
        paths: one run folder; or checkpoints (`.json`), one of a kind; nothing for the latest run
            under `runs/`, unless there is a published generator.
        published: `config.json` and checkpoint of HiFi-GAN's own code, in place of a vocoder.

    Raises:
        CheckpointError: a path is neither, or damaged; there are two checkpoints of a kind; or they
            were trained on different mels, a Talker on another quantizer's codes, or it has no
            quantizer; each is named.
    """
    folder = None
    if len(paths) == 1 and Path(paths[0]).is_dir() or not (paths or published):
        folder = RunFolder.existing(paths[0] if paths else None)
        folder.read_config()  # names what is damaged
        files = {kind: folder.model(kind) for kind in KINDS if folder.model(kind).is_file()}
        if not files:
            raise CheckpointError(f"{folder.path}: holds no finished {' or '.join(KINDS)}")
    else:
        files = _by_kind(paths)
    if published:
        if "vocoder" in files:
            raise CheckpointError(f"{published[0]}: {files['vocoder']} is a vocoder already")
        return _with_published(files, published, folder)
    mels = {kind: load_model(path, kind).mel for kind, path in files.items()}
    if "rvq" in mels and "vocoder" in mels:
        with blaming(files["vocoder"]):
            require_same_mel(mels["rvq"], mels["vocoder"], "quantizer != vocoder")
    mel = next(iter(mels.values()))
    hifigan = NeuralVocoder(files["vocoder"], mel).eval() if "vocoder" in files else None
    return Subject(mel, files, hifigan, _codecs(files), folder)


def _by_kind(paths: Sequence[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in paths:
        if Path(path).is_dir():
            raise CheckpointError(f"{path}: expected one run folder, or checkpoints, got both")
        kind = load_model(path).kind
        if kind not in KINDS:
            raise CheckpointError(f"{path}: expected {' or '.join(KINDS)}, got a {kind}")
        if kind in files:
            raise CheckpointError(f"{path}: {files[kind]} is of the same kind, {kind}")
        files[kind] = Path(path)
    return files


def _with_published(
    files: dict[str, Path], published: Sequence[str], folder: RunFolder | None
) -> Subject:
    """A published generator, with a quantizer if there is one."""
    config, checkpoint = published
    mel = MelConfig.from_hifigan(config)
    generator = HiFiGANVocoder.from_hifigan(config, checkpoint).fold_weight_norm().eval()
    with blaming(config):
        require_hop(generator.hop_length, mel.hop_length)
        require_n_mels(generator.n_mels, mel.n_mels, "the vocoder")
        if "rvq" in files:
            require_same_mel(load_model(files["rvq"], "rvq").mel, mel, "quantizer != vocoder")
    codecs = _codecs(files, generator)
    return Subject(mel, files | {"hifigan": Path(checkpoint)}, generator, codecs, folder)


def _codecs(files: dict[str, Path], generator: nn.Module | None = None) -> dict[str, SpeechCodec]:
    """The quantizer with Griffin-Lim, and with the checkpoint's or a published generator."""
    if "rvq" not in files:
        if "talker" in files:
            raise CheckpointError(f"{files['talker']}: expected its quantizer, rvq.json, with it")
        return {}
    rvq, vocoder, talker = files["rvq"], files.get("vocoder"), files.get("talker")
    codecs = {"Griffin-Lim": SpeechCodec.from_checkpoints(rvq, talker=talker)}
    if vocoder is not None:  # which warns where it was trained for another quantizer
        codecs["HiFi-GAN"] = SpeechCodec.from_checkpoints(rvq, vocoder, talker)
    elif generator is not None:
        codecs["HiFi-GAN"] = copy.deepcopy(codecs["Griffin-Lim"])
        codecs["HiFi-GAN"].vocoder = generator
    return codecs


def clips_of(
    subject: Subject, data: str | None, speakers: Sequence[str], limit: int | None
) -> tuple[Path, list[Clip]]:
    """The clips to judge: of a run those its split holds out, otherwise all.

    Args:
        subject: what is evaluated.
        data: folder or manifest; None is the run's own.
        speakers: only theirs, if there are any.
        limit: at most so many, spread evenly over the sorted list.

    Returns:
        the source's path and a list of `Clip`s.

    Raises:
        DataError: there is no data, or no clip of those speakers.
        ValueError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--limit: expected at least 1, got {limit}")
    if subject.folder is not None:
        _, run = subject.folder.read_config()
        source = source_of(run) if data is None else Path(data)
        _, clips, _ = split_clips(find_clips(source), run["split"])
    elif data is None:
        raise DataError("--data: checkpoints without a run folder need some")
    else:
        source, clips = Path(data), find_clips(data)
    if speakers:
        there = sorted({clip.speaker for clip in clips})
        missing = sorted(set(speakers) - set(there))
        if missing:
            raise DataError(f"{source}: no clips of {', '.join(missing)}; of {', '.join(there)}")
        clips = [clip for clip in clips if clip.speaker in speakers]
    return source, spread(clips, limit)


def spread(clips: Sequence[Clip], limit: int | None) -> list[Clip]:
    """At most `limit` of the clips, evenly spaced."""
    if limit is None or limit >= len(clips):
        return list(clips)
    return [clips[i * len(clips) // limit] for i in range(limit)]
