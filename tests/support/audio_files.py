"""Audio files of every container that is read."""

import io
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000  # Hz
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)
KINDS = {  # by name: libsndfile's container, sample format and order of bytes
    "pcm16.wav": ("WAV", "PCM_16", "FILE"),
    "pcm8.wav": ("WAV", "PCM_U8", "FILE"),
    "pcm24.wav": ("WAV", "PCM_24", "FILE"),
    "float.wav": ("WAV", "FLOAT", "FILE"),
    "ulaw.wav": ("WAV", "ULAW", "FILE"),
    "extensible.wav": ("WAVEX", "PCM_16", "FILE"),
    "big.wav": ("WAV", "PCM_16", "BIG"),  # RIFX
    "a.rf64": ("RF64", "PCM_16", "FILE"),
    "a.w64": ("W64", "PCM_16", "FILE"),
    "a.aiff": ("AIFF", "PCM_16", "FILE"),
    "float.aifc": ("AIFF", "FLOAT", "FILE"),
    "little.aifc": ("AIFF", "PCM_16", "LITTLE"),
    "ulaw.aifc": ("AIFF", "ULAW", "FILE"),
    "a.au": ("AU", "PCM_16", "FILE"),
    "little.au": ("AU", "PCM_16", "LITTLE"),
    "a.caf": ("CAF", "PCM_16", "FILE"),
    "double.caf": ("CAF", "DOUBLE", "FILE"),
    "a.flac": ("FLAC", "PCM_16", "FILE"),
    "vorbis.ogg": ("OGG", "VORBIS", "FILE"),
    "a.opus": ("OGG", "OPUS", "FILE"),
    "a.mp3": ("MP3", "MPEG_LAYER_III", "FILE"),
}


def encoded(kind: str, audio: np.ndarray) -> bytes:
    """A file of a kind of KINDS that holds audio (L,) or (L, channels) at RATE."""
    container, subtype, endian = KINDS[kind]
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, RATE, subtype, endian, container)
    return buffer.getvalue()


def write(path: Path, audio: np.ndarray = TONE, rate: int = RATE, subtype: str = "PCM_16") -> Path:
    """A file of the container that its extension says."""
    soundfile.write(path, audio, rate, subtype=subtype)
    return path
