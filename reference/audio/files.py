"""Reading and writing audio files, distrusting them.

Needs soundfile, and soxr where rates differ (`pip install "muomni-fast[train]"`).
"""

import dataclasses
import io
import struct
import warnings
from pathlib import Path

import numpy as np

from ..atomic import write_atomically
from ..errors import AudioFormatError

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".opus")
SUBTYPES = {
    *("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"),
    *("VORBIS", "OPUS", "MPEG_LAYER_III"),
}
WAV_BITS = {8, 16, 24, 32, 64}
SAMPLE_RATES = (1000, 384000)  # Hz, least and most
MAX_SECONDS = 3600.0
MAX_SAMPLES = 1 << 28  # over all channels, 1 GiB once decoded
MAX_CHANNELS = 64


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """What a file's header declares: sample rate in Hz, frames (samples per channel), channels."""

    sample_rate: int
    frames: int
    channels: int


def audio_info(path: str | Path) -> AudioInfo:
    """Read and check a header without decoding.

    Raises:
        AudioFormatError: missing, unreadable or empty, more than MAX_SECONDS long, an unusual
            sample format, or a WAV file shorter than it declares; names the file and the value.
    """
    import soundfile

    path = Path(path)
    if not path.is_file():
        raise AudioFormatError(f"{path}: no such file")
    try:
        _check_wav_header(path)
        info = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError, UnicodeError, struct.error) as error:
        raise AudioFormatError(f"{path}: not readable as audio: {error}") from error
    if info.subtype not in SUBTYPES:
        raise AudioFormatError(f"{path}: sample format {info.subtype} is not supported")
    if not SAMPLE_RATES[0] <= info.samplerate <= SAMPLE_RATES[1]:
        raise AudioFormatError(f"{path}: sample rate {info.samplerate} Hz is not plausible")
    if not 1 <= info.channels <= MAX_CHANNELS:
        raise AudioFormatError(f"{path}: {info.channels} channels are not plausible")
    if info.frames < 1:
        raise AudioFormatError(f"{path}: holds no samples")
    if info.frames > MAX_SECONDS * info.samplerate:
        seconds = info.frames / info.samplerate
        raise AudioFormatError(f"{path}: declares {seconds:.0f} s, more than {MAX_SECONDS:.0f} s")
    if info.frames * info.channels > MAX_SAMPLES:
        raise AudioFormatError(
            f"{path}: declares {info.frames * info.channels:,} samples, more than {MAX_SAMPLES:,}"
        )
    return AudioInfo(info.samplerate, info.frames, info.channels)


def read_audio(path: str | Path, sample_rate: int | None = None) -> tuple[np.ndarray, int]:
    """Read a file as mono float32.

    Integer and companded formats are scaled to full scale 1.0; several channels are averaged;
    `sample_rate` resamples (soxr, high quality).

    Args:
        path: of the file.
        sample_rate: Hz wanted; None keeps the file's.

    Returns:
        audio (samples,) float32, and its sample rate in Hz.

    Raises:
        AudioFormatError: as `audio_info`; or fewer frames than declared, or NaN or infinite
            samples.
    """
    import soundfile

    info = audio_info(path)
    try:
        audio, rate = soundfile.read(
            str(path), dtype="float32", always_2d=True
        )  # (frames, channels)
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioFormatError(f"{path}: not readable as audio: {error}") from error
    if len(audio) != info.frames:
        raise AudioFormatError(f"{path}: declares {info.frames} frames, holds {len(audio)}")
    if not np.isfinite(audio).all():
        raise AudioFormatError(f"{path}: holds NaN or infinite samples")
    mono = audio[:, 0] if info.channels == 1 else audio.mean(axis=1, dtype=np.float32)
    if sample_rate is not None and sample_rate != rate:
        import soxr

        mono, rate = soxr.resample(mono, rate, sample_rate, quality="HQ"), sample_rate
    return np.ascontiguousarray(mono, dtype=np.float32), rate


def write_audio(path: str | Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write mono audio (samples,) as a 16-bit WAV file, atomically.

    Samples beyond full scale are clipped with a warning.

    Raises:
        ValueError: not one-dimensional, empty, or holding NaN or infinite samples.
        CheckpointError: the file cannot be written.
    """
    import soundfile

    if audio.ndim != 1 or len(audio) == 0:
        raise ValueError(f"audio: expected (samples >= 1,), got {audio.shape}")
    if not np.isfinite(audio).all():
        raise ValueError(f"audio: refusing to write NaN or infinite samples to {path}")
    peak = float(np.abs(audio).max())
    if peak > 1:
        warnings.warn(f"{path}: peak {peak:.2f} is beyond full scale, clipped", stacklevel=2)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(audio, -1, 1), sample_rate, subtype="PCM_16", format="WAV")
    write_atomically(path, buffer.getvalue())


def _check_wav_header(path: Path) -> None:
    """Check what libsndfile forgives: odd bit depths, and a data chunk longer than the file."""
    with open(path, "rb") as file:
        if file.read(4) != b"RIFF":
            return
        file.seek(12)
        size = path.stat().st_size
        while len(header := file.read(8)) == 8:
            name, declared = struct.unpack("<4sI", header)
            if name == b"fmt ":
                bits = struct.unpack_from("<14xH", file.read(16))[0]
                if bits not in WAV_BITS:
                    raise AudioFormatError(f"{path}: {bits} bits per sample are not supported")
                file.seek(declared - 16 + declared % 2, io.SEEK_CUR)
            elif name == b"data":
                held = size - file.tell()
                if declared > held:
                    raise AudioFormatError(
                        f"{path}: truncated: declares {declared:,} bytes of samples, holds {held:,}"
                    )
                return
            else:
                file.seek(declared + declared % 2, io.SEEK_CUR)
