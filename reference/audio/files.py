"""Reading and writing audio files, distrusting them.

Needs soundfile, and soxr where rates differ (the extra `cli`, or `train`).
"""

import contextlib
import dataclasses
import itertools
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AudioFormatError
from .containers import SAMPLE_BYTES, check_declared
from .wav import wav_writer

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".opus")
# By libsndfile's names. These declare their length in bytes:
DECLARING = {"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF"}
SUBTYPES = {  # sample formats by container
    **dict.fromkeys(DECLARING, set(SAMPLE_BYTES)),
    "FLAC": {"PCM_S8", "PCM_16", "PCM_24"},
    "OGG": {"VORBIS", "OPUS"},
    "MP3": {"MPEG_LAYER_III"},
}
SAMPLE_RATES = (1000, 384000)  # Hz, least and most
MAX_SECONDS = 3600.0
MAX_SAMPLES = 1 << 28  # over all channels, 1 GiB once decoded
MAX_STREAMED_SECONDS = 360000.0  # of a file that is never in memory as a whole: 100 hours
MAX_CHANNELS = 64
MAX_PEAK = 1e6  # full scale is 1; nothing that is computed of this overflows
BLOCK_SAMPLES = 1 << 18  # decoded at once, over all channels
UNKNOWN_FRAMES = (1 << 63) - 1


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """What a file's header declares: sample rate in Hz, frames (samples per channel), channels."""

    sample_rate: int
    frames: int
    channels: int


def audio_info(path: str | Path, streamed: bool = False) -> AudioInfo:
    """Read and check a header without decoding.

    Args:
        path: of the file.
        streamed: it will be read by `audio_blocks`, so that it may be MAX_STREAMED_SECONDS long.

    WAV (also RIFX, RF64 and W64), AIFF, AU, CAF and FLAC declare their length, and are refused
    where they hold less. Ogg does not: a file that ends early is as long as what is left, which
    nothing tells from a short one. MP3 does in a Xing or Info header; without one, its length is
    worked out from its first bit rate, and wrong where that changes.

    Raises:
        AudioFormatError: missing, not a regular file, unreadable or empty, more than MAX_SECONDS
            long, an unusual container or sample format, or shorter than it declares; names the file
            and the value.
    """
    with _opened(path, streamed) as (_, info):
        return info


def read_audio(path: str | Path, sample_rate: int | None = None) -> tuple[np.ndarray, int]:
    """Read a file as mono float32.

    Integer and companded formats are scaled to full scale 1.0; several channels are averaged;
    `sample_rate` resamples (soxr, high quality).

    Args:
        path: of the file.
        sample_rate: Hz wanted; None keeps the file's.

    Returns:
        audio (samples,) float32, finite and at most MAX_PEAK, and its sample rate in Hz.

    Raises:
        AudioFormatError: as `audio_info`; or fewer frames than declared, NaN or infinite samples,
            or a peak above MAX_PEAK.
    """
    with _opened(path) as (file, info):
        blocks = [*_blocks(path, file, info, sample_rate)]
    audio = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    return audio, info.sample_rate if sample_rate is None else sample_rate


def audio_blocks(path: str | Path, sample_rate: int | None = None) -> Iterator[np.ndarray]:
    """What `read_audio` gives, to the bit, in blocks and bounded memory.

    Args:
        path: of the file, at most MAX_STREAMED_SECONDS long.
        sample_rate: Hz wanted; None keeps the file's.

    Yields:
        (n,) float32, n >= 1, about BLOCK_SAMPLES samples of the file at a time.

    Raises:
        AudioFormatError: as `read_audio`, but for the length; what is wrong with samples, when it
            comes to them.
    """
    with _opened(path, streamed=True) as (file, info):
        yield from _blocks(path, file, info, sample_rate)


def _blocks(
    path: str | Path, file: Any, info: AudioInfo, sample_rate: int | None
) -> Iterator[np.ndarray]:
    """Mono blocks of an opened file, at another rate if one is given; raises as `read_audio`."""
    if sample_rate is None or sample_rate == info.sample_rate:
        yield from _decoded(path, file, info)
        return
    import soxr

    resampler = soxr.ResampleStream(info.sample_rate, sample_rate, 1, quality="HQ")
    for block in itertools.chain(_decoded(path, file, info), [np.empty(0, np.float32)]):
        audio = resampler.resample_chunk(block, last=len(block) == 0)
        _require_plausible(path, audio)  # it overshoots
        if len(audio):
            yield audio


def _decoded(path: str | Path, file: Any, info: AudioInfo) -> Iterator[np.ndarray]:
    """Mono blocks at the file's own rate: memory grows with what it holds, not what it declares."""
    frames, held = BLOCK_SAMPLES // info.channels, 0
    while len(block := file.read(frames, dtype="float32", always_2d=True)):  # (frames, channels)
        if info.channels > 1:
            with np.errstate(invalid="ignore"):  # infinite channels are refused below
                block = block.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        held += len(block)
        _require_plausible(path, block)
        yield block[:, 0]
    if held != info.frames:
        raise AudioFormatError(f"{path}: declares {info.frames:,} frames, holds {held:,}")


def resample(audio: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Audio (samples,) float32 at another rate in Hz, by soxr in high quality; it may overshoot."""
    import soxr

    return soxr.resample(audio, from_rate, to_rate, quality="HQ")


@contextlib.contextmanager
def _opened(path: str | Path, streamed: bool = False) -> Iterator[tuple[Any, AudioInfo]]:
    """A `soundfile.SoundFile` of which the header has been checked.

    Raises:
        AudioFormatError: as `audio_info`, or it cannot be decoded in the block.
    """
    import soundfile

    _require_regular(path)
    try:
        # By its descriptor: given a name, libsndfile would guess by the extension what to read
        # where it finds no header.
        with (
            open(path, "rb", buffering=0) as raw,
            soundfile.SoundFile(raw.fileno(), closefd=False) as file,
        ):
            info = AudioInfo(file.samplerate, file.frames, file.channels)
            _require_supported(path, file.format, file.subtype, info, streamed)
            if file.format in DECLARING:
                at = raw.tell()
                check_declared(raw, file.subtype, info.channels, info.frames)
                raw.seek(at)
            yield file, info
    except struct.error as error:
        raise AudioFormatError(
            f"{path}: not readable as audio: its header leads past its end"
        ) from error
    except (soundfile.SoundFileError, OSError) as error:
        # Without the descriptor, which libsndfile's own message names.
        why = getattr(error, "error_string", error)
        raise AudioFormatError(f"{path}: not readable as audio: {why}") from error


def _require_regular(path: str | Path) -> None:
    """Raise unless it is a file with something in it: reading a pipe or a device may never end."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise AudioFormatError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte in it
        raise AudioFormatError(f"{path}: not readable: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise AudioFormatError(f"{path}: not a regular file")
    if status.st_size == 0:
        raise AudioFormatError(f"{path}: not readable as audio: empty")


def _require_supported(
    path: str | Path, container: str, subtype: str, info: AudioInfo, streamed: bool
) -> None:
    if container not in SUBTYPES:
        raise AudioFormatError(f"{path}: container {container} is not supported")
    if subtype not in SUBTYPES[container]:
        raise AudioFormatError(f"{path}: sample format {subtype} is not supported")
    if not SAMPLE_RATES[0] <= info.sample_rate <= SAMPLE_RATES[1]:
        raise AudioFormatError(f"{path}: sample rate {info.sample_rate} Hz is not plausible")
    if not 1 <= info.channels <= MAX_CHANNELS:
        raise AudioFormatError(f"{path}: {info.channels} channels are not plausible")
    if info.frames < 1:
        raise AudioFormatError(f"{path}: holds no samples")
    if info.frames == UNKNOWN_FRAMES:
        raise AudioFormatError(f"{path}: declares no length")
    seconds, most = info.frames / info.sample_rate, MAX_SECONDS
    if streamed:
        most = MAX_STREAMED_SECONDS
    if seconds > most:
        raise AudioFormatError(f"{path}: declares {seconds:.0f} s, more than {most:.0f} s")
    if not streamed and info.frames * info.channels > MAX_SAMPLES:
        raise AudioFormatError(
            f"{path}: declares {info.frames * info.channels:,} samples, more than {MAX_SAMPLES:,}"
        )


def _require_plausible(path: str | Path, audio: np.ndarray) -> None:
    """Raise unless all samples are finite and within MAX_PEAK."""
    peak = max(audio.max(initial=0.0), -audio.min(initial=0.0))  # NaN where a sample is
    if not np.isfinite(peak):
        raise AudioFormatError(f"{path}: holds NaN or infinite samples")
    if peak > MAX_PEAK:
        raise AudioFormatError(f"{path}: peak {peak:.1e} is above {MAX_PEAK:.0e} x full scale")


def write_audio(path: str | Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write mono audio (samples,) as a 16-bit WAV file, atomically.

    Samples beyond full scale are clipped with a warning.

    Raises:
        ValueError: not one-dimensional, empty, or holding NaN or infinite samples.
        CheckpointError: the file cannot be written.
    """
    if audio.ndim != 1 or len(audio) == 0:
        raise ValueError(f"audio: expected (samples >= 1,), got {audio.shape}")
    with wav_writer(path, sample_rate) as file:
        file.write(audio)
    if file.peak > 1:
        message = f"{path}: peak {file.peak:.2f} is beyond full scale, clipped"
        warnings.warn(message, stacklevel=2)
