"""The model that a command runs, wherever it comes from."""

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..codec import SpeechCodec
from ..loading import SHIPPED_MODEL, load
from ..reference import GriffinLimVocoder, NeuralVocoder
from ..reference.audio.mel import MelConfig
from ..reference.checkpoint import load_model
from ..reference.rvq.digest import quantizer_digest
from ..rvq.modules import RVQ
from ..shipped import located
from ..vocoder.modules import HiFiGANVocoder
from .existing import DIGITS
from .places import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NO_TALKER = (
    "speak needs a Talker, and {where} has none. To train one in a run: "
    "muomni-fast train --resume RUN --stage talker; then --model RUN"
)


def model_path(given: str | None) -> Path:
    """Where the model is that a command runs: the one place that knows a default.

    Raises:
        CheckpointError: it is neither a path nor the name of one that comes with the library.
    """
    return SHIPPED_MODEL if given is None else located(given)


def device_of(given: str | None) -> torch.device:
    """The device asked for, or a GPU where there is one."""
    if given is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(given)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).split("\n")[0]
        raise UsageError(f"--device {given}: {reason}") from error
    return device


def dtype_of(given: str) -> torch.dtype:
    """The vocoder's dtype."""
    if given not in DTYPES:
        raise UsageError(f"--dtype: expected one of {', '.join(DTYPES)}, got {given}")
    return DTYPES[given]


@dataclass
class Voice:
    """A vocoder that is ready to run: mels in, sound out.

    Attributes:
        vocoder: HiFi-GAN's generator, or Griffin-Lim.
        mel: settings of the mels it takes.
        dtype: in which it takes them.
        digest: of its settings and weights.
    """

    vocoder: Any
    mel: MelConfig
    dtype: torch.dtype
    digest: str

    @property
    def streams(self) -> bool:
        """Whether it can run on a mel that arrives piece by piece."""
        return isinstance(self.vocoder, HiFiGANVocoder)


@dataclass
class Coder:
    """A codec that is ready to run: its quantizer, and sha256 of it."""

    codec: SpeechCodec
    digest: str

    def books(self, n_codebooks: int | None) -> int:
        """How many codebooks to use; raises UsageError if the model has fewer."""
        most = self.codec.rvq.n_codebooks
        if n_codebooks is not None and not 1 <= n_codebooks <= most:
            raise UsageError(f"--n-codebooks: expected 1 to {most}, got {n_codebooks}")
        return n_codebooks or most


def open_coder(path: Path, device: torch.device, command: str) -> Coder:
    """The codec that a run, checkpoint or folder holds.

    Args:
        path: as `load` takes it.
        device: to run on.
        command: what needs it, for messages.

    Raises:
        UsageError: it holds no codec.
        CheckpointError: as `load`.
    """
    with _without_warnings():
        model: nn.Module = load(path)
        if isinstance(model, RVQ) and path.suffix == ".json":  # a quantizer's checkpoint
            model = SpeechCodec.from_checkpoints(path)
    if isinstance(model, RVQ):
        what = "holds a quantizer without the settings of its mels"
        raise UsageError(f"--model {path}: {what}; {command} needs rvq.json, or the run's folder")
    if not isinstance(model, SpeechCodec):
        what = f"holds a {'vocoder' if isinstance(model, HiFiGANVocoder) else 'Talker'} only"
        raise UsageError(f"--model {path}: {what}; {command} needs rvq.json, or the run's folder")
    digest = quantizer_digest(model.rvq, model.frames_per_code, model.pooling)
    quantizer: Any = model.rvq  # ours, whatever the codec's annotations say
    quantizer.to(device).prepare()
    return Coder(model, digest)


def inside(vocoder: nn.Module) -> Any:
    """What is in a `NeuralVocoder`, or the vocoder itself."""
    return vocoder.vocoder if isinstance(vocoder, NeuralVocoder) else vocoder


def voice_of(vocoder: nn.Module, mel: MelConfig, device: torch.device, dtype: torch.dtype) -> Voice:
    """A codec's vocoder, ready to run.

    Raises:
        UsageError: `dtype` is not float32, and there are no weights.
    """
    voice = inside(vocoder)
    digest = hashlib.sha256(repr((type(voice).__name__, mel)).encode())
    if isinstance(voice, GriffinLimVocoder):
        if dtype != torch.float32:
            raise UsageError("--dtype: the model has no vocoder, and Griffin-Lim runs in float32")
        return Voice(voice, mel, dtype, digest.hexdigest()[:DIGITS])
    voice = voice.fold_weight_norm() if voice.config["weight_norm"] else voice
    weights_into(digest, voice)
    digest.update(str(voice.config).encode())
    return Voice(voice.to(device, dtype).prepare(), mel, dtype, digest.hexdigest()[:DIGITS])


def weights_into(digest: Any, model: nn.Module) -> None:
    """Add a module's weights to a digest of hashlib's."""
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())


def open_voice(
    path: Path, device: torch.device, dtype: torch.dtype, part: str | None = None
) -> Voice:
    """The vocoder that a run, checkpoint, folder or published file holds.

    Raises:
        UsageError: it holds none.
        CheckpointError: as `load`.
    """
    with _without_warnings():
        model = load(path, part)
    if isinstance(model, SpeechCodec):
        return voice_of(model.vocoder, model.config, device, dtype)
    if not isinstance(model, HiFiGANVocoder):
        what = f"holds a {'quantizer' if isinstance(model, RVQ) else 'Talker'} only"
        raise UsageError(
            f"--model {path}: {what}; vocode needs vocoder.json, a folder of HiFi-GAN's own code, "
            "or the run's folder"
        )
    return voice_of(model, _mel_beside(path), device, dtype)


def _mel_beside(path: Path) -> MelConfig:
    """Settings of the mels of a vocoder that is at `path`, or in that folder."""
    folder = path if path.is_dir() else path.parent
    ours = [path, *(place / "vocoder.json" for place in (folder / "checkpoints", folder))]
    for file in ours:
        if file.suffix == ".json" and file.is_file():
            return load_model(file, "vocoder").mel
    for file in sorted(folder.glob("config*.json")):
        return MelConfig.from_hifigan(file)
    raise UsageError(f"--model {path}: expected a config.json beside it, for its mels")


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Without what is logged of models that have no vocoder: commands that need one say it."""
    logger = logging.getLogger("muomni_fast.reference.vocoder.neural")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
