"""Broken audio files of every container, and what reading one must come to."""

from pathlib import Path

import numpy as np
import soundfile

from muomni_fast import AudioFormatError
from muomni_fast.reference.audio.containers import SAMPLE_BYTES
from muomni_fast.reference.audio.files import DECLARING, audio_info, read_audio
from support.audio_files import KINDS, RATE, encoded
from support.fuzz import Figures, Limits, fuzz

# The slowest of 25,000 files took 57 ms, and the most bytes allocated were 1.1 MiB.
LIMITS = Limits(seconds=1.0, bytes_per_byte=16, bytes_besides=2 << 20)


def fuzz_audio(files: int, seed: int, folder: Path) -> Figures:
    """Read broken audio files; arguments as of `fuzz`."""
    random = np.random.default_rng(0)
    audio = random.normal(0, 0.1, (2000, 2)).clip(-1, 1)
    samples = {kind: encoded(kind, audio) for kind in KINDS}
    return fuzz(samples, _read, LIMITS, files, seed, folder)


def _read(path: Path) -> bool:
    """Whether a file is read; checks the answer, or the refusal."""
    try:
        info = audio_info(path)
        audio, rate = read_audio(path)
        resampled, _ = read_audio(path, RATE)
    except AudioFormatError as error:
        assert str(path) in str(error), f"{error!r} does not name {path}"
        return False
    assert (len(audio), rate) == (info.frames, info.sample_rate)
    assert abs(len(resampled) - len(audio) * RATE / rate) <= 1
    for answer in (audio, resampled):
        assert answer.dtype == np.float32 and answer.ndim == 1
        assert np.isfinite(answer).all() and np.abs(answer).max(initial=0) <= 1e6
    with open(path, "rb") as file, soundfile.SoundFile(file) as sound:
        if sound.format in DECLARING:  # the others are compressed
            least = info.frames * info.channels * SAMPLE_BYTES[sound.subtype]
            assert least <= path.stat().st_size, f"{path} cannot hold {info.frames} frames"
    return True
