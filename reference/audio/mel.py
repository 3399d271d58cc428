"""Log-mel spectrograms, from one frozen `MelConfig` that every checkpoint carries.

Framing: audio is zero-padded to a multiple of `hop_length`, reflect-padded by (n_fft -
hop_length)/2 on each side and framed without centring, so L samples give exactly ceil(L /
hop_length) frames and a vocoder that makes `hop_length` samples per frame gives the length back.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..checks import full_precision, refuse_in_capture, require_tensor
from ..errors import CheckpointError
from ..reading import blaming, read_json
from ..values import MOST_HOP, require_choice, require_int, require_number

POOLINGS = ("mean", "stack")  # of mel frames to one code
LARGEST = {
    "sample_rate": 1 << 20,  # Hz
    "n_fft": MOST_HOP,
    "win_length": MOST_HOP,
    "hop_length": MOST_HOP,
    "n_mels": 1 << 12,
}


@dataclasses.dataclass(frozen=True)
class MelConfig:
    """Settings of a log-mel spectrogram.

    Args:
        sample_rate: Hz.
        n_fft: FFT size, samples.
        win_length: length of the periodic Hann window, samples; zero-padded to `n_fft`.
        hop_length: samples from frame to frame.
        n_mels: number of mel bands.
        fmin, fmax: band limits, Hz.
        log_floor: mel magnitudes are clamped to at least this before the natural logarithm.

    Raises:
        TypeError: a setting is not a number, or not an integer where it must be.
        ValueError: a setting is out of range; the message names it.
    """

    sample_rate: int = 16000
    n_fft: int = 1024
    win_length: int = 1024
    hop_length: int = 256
    n_mels: int = 128
    fmin: float = 0.0
    fmax: float = 8000.0
    log_floor: float = 1e-5

    def __post_init__(self) -> None:
        for name, most in LARGEST.items():
            object.__setattr__(self, name, require_int(name, getattr(self, name), 1, most))
        for name in ("fmin", "fmax", "log_floor"):
            object.__setattr__(self, name, require_number(name, getattr(self, name)))
        if self.win_length > self.n_fft:
            raise ValueError(
                f"win_length: expected at most n_fft = {self.n_fft}, got {self.win_length}"
            )
        # A hop beyond the window would skip samples.
        if self.hop_length > self.win_length or (self.n_fft - self.hop_length) % 2:
            raise ValueError(
                f"hop_length: expected at most win_length = {self.win_length} and "
                f"n_fft - hop_length even, got {self.hop_length}"
            )
        if not 0 <= self.fmin < self.fmax <= self.sample_rate / 2:
            raise ValueError(
                f"fmin, fmax: expected 0 <= fmin < fmax <= {self.sample_rate / 2} Hz, "
                f"got {self.fmin}, {self.fmax}"
            )
        if not self.log_floor > 0:
            raise ValueError(f"log_floor: expected a positive number, got {self.log_floor}")

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_length

    def n_frames(self, n_samples: int) -> int:
        """Frames that `n_samples` of audio give: ceil(n_samples / hop_length)."""
        return -(-n_samples // self.hop_length)

    @classmethod
    def from_hifigan(cls, config_json: str | Path) -> "MelConfig":
        """Read the mel settings of a HiFi-GAN `config.json`.

        Raises:
            CheckpointError: it is not such a file, or a setting is missing or out of range.
        """
        names = {
            "sample_rate": "sampling_rate",
            "n_fft": "n_fft",
            "win_length": "win_size",
            "hop_length": "hop_size",
            "n_mels": "num_mels",
            "fmin": "fmin",
            "fmax": "fmax",
        }
        h = read_hifigan_config(config_json, names.values())
        with blaming(config_json):
            return cls(**{ours: h[theirs] for ours, theirs in names.items()})


def read_hifigan_config(config_json: str | Path, names: Iterable[str]) -> dict[str, Any]:
    """Read a HiFi-GAN `config.json`.

    Raises:
        CheckpointError: it is not a JSON object, or lacks one of `names`; names file and key.
    """
    config = read_json(config_json, "not a HiFi-GAN config")
    missing = [name for name in names if name not in config]
    if missing:
        raise CheckpointError(f"{config_json}: lacks {', '.join(missing)}")
    return config


def require_same_mel(here: MelConfig, there: MelConfig, where: str) -> None:
    """Raise ValueError naming each setting on which two parts of a pipeline disagree."""
    different = [
        f"{field.name}: {getattr(here, field.name)} != {getattr(there, field.name)}"
        for field in dataclasses.fields(MelConfig)
        if getattr(here, field.name) != getattr(there, field.name)
    ]
    if different:
        raise ValueError(f"mel settings differ ({where}): " + "; ".join(different))


def hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Slaney's Auditory Toolbox scale: linear (3 mels per 200 Hz) below 1 kHz, then logarithmic."""
    log_part = 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4)
    return np.where(hz < 1000, hz * 3 / 200, log_part)


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Inverse of `hz_to_mel`."""
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((np.maximum(mel, 15) - 15) / 27))


@functools.lru_cache(maxsize=16)
def mel_filterbank(config: MelConfig) -> np.ndarray:
    """Triangular Slaney filters of unit area, float64 (n_mels, n_fft // 2 + 1); read-only.

    Equal to `librosa.filters.mel(htk=False, norm="slaney")` within 1e-6.
    """
    limits = hz_to_mel(np.array([config.fmin, config.fmax], dtype=np.float64))
    edges = mel_to_hz(np.linspace(limits[0], limits[1], config.n_mels + 2))  # (n_mels + 2,) Hz
    bins = np.arange(config.n_fft // 2 + 1) * config.sample_rate / config.n_fft  # (F,) Hz
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (bins - left) / (centre - left)
    falling = (right - bins) / (right - centre)
    filters = np.maximum(0, np.minimum(rising, falling)) * 2 / (right - left)
    filters.flags.writeable = False
    return filters


_constants: dict[tuple, Tensor] = {}


def _constant(key: tuple, like: Tensor, make: Callable[[], Tensor]) -> Tensor:
    """A window or filterbank with the dtype and device of `like`, made once.

    Made outside inference mode, whose tensors no gradient may pass, and kept only if it is real.
    """
    key = (*key, like.dtype, like.device)
    if key in _constants:
        return _constants[key]
    refuse_in_capture(
        like.device, f"mel: no window or filterbank on {like.device}; make one before"
    )
    with torch.inference_mode(False):
        value = make().to(dtype=like.dtype, device=like.device)
    if type(value) is Tensor:
        _constants[key] = value
    return value


def filterbank_like(config: MelConfig, like: Tensor) -> Tensor:
    """`mel_filterbank` as a tensor with the dtype and device of `like`."""
    return _constant((config,), like, lambda: torch.from_numpy(mel_filterbank(config).copy()))


def window_like(config: MelConfig, like: Tensor) -> Tensor:
    """Periodic Hann window (n_fft,), zero-padded on both sides from `win_length`."""

    def make() -> Tensor:
        hann = torch.hann_window(
            config.win_length, periodic=True, dtype=torch.float64, device="cpu"
        )
        left = (config.n_fft - config.win_length) // 2
        return F.pad(hann, (left, config.n_fft - config.win_length - left))

    return _constant((config.n_fft, config.win_length), like, make)


def pad_audio(audio: Tensor, config: MelConfig) -> Tensor:
    """Zero-pad (..., L) to whole hops, then reflect-pad (n_fft - hop_length)/2 on each side.

    Audio shorter than the padding is reflected back and forth, as `numpy.pad` does. Made of slices
    and flips, so that the gradient is deterministic on every device.
    """
    audio = F.pad(audio, (0, -audio.shape[-1] % config.hop_length))
    remaining = (config.n_fft - config.hop_length) // 2
    while remaining:
        step = min(remaining, audio.shape[-1] - 1)
        if step < 1:  # one sample (hop_length = 1) has nothing to reflect
            return F.pad(audio, (remaining, remaining))
        left, right = audio[..., 1 : step + 1].flip(-1), audio[..., -step - 1 : -1].flip(-1)
        audio = torch.cat([left, audio, right], dim=-1)
        remaining -= step
    return audio


def spectrogram(audio: Tensor, config: MelConfig) -> Tensor:
    """Complex STFT (..., F, T) of padded audio (..., L), F = n_fft // 2 + 1, T = ceil(L / hop)."""
    padded = pad_audio(audio, config)
    flat = padded.reshape(-1, padded.shape[-1])
    spectrum = torch.stft(
        flat,
        config.n_fft,
        config.hop_length,
        config.n_fft,
        window_like(config, audio),
        center=False,
        return_complex=True,
    )
    return spectrum.reshape(*audio.shape[:-1], *spectrum.shape[-2:])


def log_mel(audio: Tensor, config: MelConfig) -> Tensor:
    """Natural-log mel spectrogram.

    The FFT runs in float64: in float32 its rounding, relative to the loudest bin, moves quiet bands
    by up to 1e-3 in the logarithm.

    Args:
        audio: (..., L) float32 or float64, full scale 1.0, at `config.sample_rate`.

    Returns:
        (..., n_mels, ceil(L / hop_length)), the dtype of `audio`: log(max(mel magnitude,
        log_floor)).

    Raises:
        TypeError: `audio` is not a tensor, or not float32 or float64.
        ValueError: `audio` is empty.
    """
    require_tensor("audio", audio)
    if audio.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"audio: expected float32 or float64, got {audio.dtype}")
    if audio.ndim < 1 or audio.shape[-1] == 0:
        raise ValueError(f"audio: expected at least one sample (..., L), got {tuple(audio.shape)}")
    fft_dtype = torch.float32 if audio.device.type == "mps" else torch.float64  # MPS has no float64
    if audio.numel() == 0:
        return audio.new_empty(*audio.shape[:-1], config.n_mels, config.n_frames(audio.shape[-1]))
    magnitude = spectrogram(audio.to(fft_dtype), config).abs()  # (..., F, T)
    with full_precision(audio):
        mel = filterbank_like(config, magnitude) @ magnitude  # (..., n_mels, T)
    return mel.clamp(min=config.log_floor).log().to(audio.dtype)


def pool_frames(mel: Tensor, frames_per_code: int, pooling: str = "mean") -> Tensor:
    """One vector for each group of frames, what a quantizer gives a code to.

    A ragged tail repeats its last frame. 5 frames of 16 ms make the 12.5 codes per second of a
    language model's speech tokens.

    Args:
        mel: (..., T, n_mels), T >= 1.
        frames_per_code: of a group.
        pooling: "mean" averages a group, which loses what changes within it; "stack" puts its
            frames side by side.

    Returns:
        (..., ceil(T / frames_per_code), n_mels), stacked (..., frames_per_code * n_mels).
    """
    _require_frames(mel, frames_per_code, pooling)
    missing = -mel.shape[-2] % frames_per_code
    if missing:
        tail = mel[..., -1:, :].expand(*mel.shape[:-2], missing, mel.shape[-1])
        mel = torch.cat([mel, tail], dim=-2)
    groups = mel.unflatten(-2, (-1, frames_per_code))  # (..., S, frames_per_code, n_mels)
    return groups.flatten(-2) if pooling == "stack" else groups.mean(dim=-2)


def unpool_frames(mel: Tensor, frames_per_code: int, pooling: str = "mean") -> Tensor:
    """Frames of what `pool_frames` gives: (..., S, pooled) -> (..., S * frames_per_code, n_mels).

    "mean" interpolates linearly, so that a frame may depend on the code after its own; "stack"
    takes apart what stood side by side, and no code waits for the next.

    Raises:
        ValueError: there are no frames; stacked, `frames_per_code` does not divide their width.
    """
    _require_frames(mel, frames_per_code, pooling)
    size = mel.shape[-2] * frames_per_code
    if pooling == "stack":
        if mel.shape[-1] % frames_per_code:
            raise ValueError(
                f"mel: expected (..., S, {frames_per_code} * n_mels), got {tuple(mel.shape)}"
            )
        return mel.unflatten(-1, (frames_per_code, -1)).flatten(-3, -2)
    flat = mel.reshape(-1, *mel.shape[-2:]).transpose(1, 2)  # (B, n_mels, S)
    out = F.interpolate(flat, size=size, mode="linear", align_corners=False).transpose(1, 2)
    return out.reshape(*mel.shape[:-2], size, mel.shape[-1])


def pooled_width(n_mels: int, frames_per_code: int, pooling: str) -> int:
    """Numbers of one of the vectors that `pool_frames` gives: a quantizer's `n_mels`."""
    return n_mels * frames_per_code if require_pooling(pooling) == "stack" else n_mels


def require_pooling(pooling: str) -> str:
    """Raise unless `pooling` is one that `pool_frames` knows."""
    return require_choice("pooling", pooling, *POOLINGS)


def _require_frames(mel: Tensor, frames_per_code: int, pooling: str) -> None:
    if mel.ndim < 2 or mel.shape[-2] == 0:
        raise ValueError(f"mel: expected (..., T >= 1, n_mels), got {tuple(mel.shape)}")
    require_int("frames_per_code", frames_per_code, 1, MOST_HOP)
    require_pooling(pooling)
