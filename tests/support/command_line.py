"""The command line called in this process, and codecs small enough to make at once."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch

import muomni_fast
from muomni_fast import GriffinLimVocoder, MelConfig, SpeechCodec
from muomni_fast.cli.app import run

RATE = 8000  # Hz
MEL = MelConfig(sample_rate=RATE, n_fft=64, win_length=64, hop_length=16, n_mels=4, fmax=4000.0)
SIZES = dict(codebook_size=11, codebook_dim=3)


class Done(NamedTuple):
    """A command's exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


def call(*arguments: Any) -> Done:
    """Run `muomni-fast ARGUMENTS`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    return Done(code, out.getvalue(), err.getvalue())


def small_codec(
    folder: Path, frames_per_code: int = 3, pooling: str = "mean", vocoder: bool = True
) -> SpeechCodec:
    """A codec of random weights, saved in a folder."""
    rvq = muomni_fast.RVQ(
        2, **SIZES, n_mels=MEL.n_mels * (frames_per_code if pooling == "stack" else 1), bias=True
    )
    voice: Any = GriffinLimVocoder(MEL)
    if vocoder:
        voice = muomni_fast.HiFiGANVocoder(4, (4, 4), (8, 8), 8, "2", (3,), ((1, 2),))
    with torch.no_grad():
        for weight in rvq.codebook_weights():
            weight.mul_(3)
        rvq.proj_out.bias.fill_(-9)  # not louder than full scale
    codec = SpeechCodec(rvq, voice, MEL, frames_per_code, pooling).eval()
    muomni_fast.save(codec, folder)
    return codec


def speech(folder: Path, **lengths: int) -> dict[str, Path]:
    """Noise by name, of so many samples at RATE, as FLAC files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    random, paths = np.random.default_rng(0), {}
    for name, length in lengths.items():
        paths[name] = folder / f"{name}.flac"
        level = 0.2 * np.abs(np.sin(np.arange(length) / 900))
        soundfile.write(paths[name], level * random.standard_normal(length).clip(-3, 3), RATE)
    return paths


def audio_of(path: Path) -> torch.Tensor:
    """(1, L) of a file at RATE."""
    audio, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE
    return torch.from_numpy(audio)[None]


def names_in(folder: Path) -> set[str]:
    """All files in a folder, hidden ones too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
