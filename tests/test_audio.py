"""Audio files of every kind, most of them broken."""

import struct
from pathlib import Path

import numpy as np
import pytest

from muomni_fast import AudioFormatError
from muomni_fast.reference.audio.files import audio_info, read_audio, write_audio

soundfile = pytest.importorskip("soundfile")
RATE = 16000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def write(path: Path, audio: np.ndarray = TONE, rate: int = RATE, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, audio, rate, subtype=subtype)
    return path


@pytest.mark.parametrize(
    ("subtype", "error"),
    [
        ("PCM_U8", 1e-2),
        ("PCM_16", 1e-4),
        ("PCM_24", 1e-6),
        ("PCM_32", 1e-6),
        ("FLOAT", 0),
        ("DOUBLE", 1e-7),
        ("ULAW", 2e-2),
        ("ALAW", 2e-2),
    ],
)
def test_sample_formats(tmp_path, subtype, error):
    audio, rate = read_audio(write(tmp_path / "a.wav", subtype=subtype))
    assert audio.dtype == np.float32 and rate == RATE
    assert np.abs(audio - TONE).max() <= error


def test_8_bit_flac(tmp_path):
    audio, _ = read_audio(write(tmp_path / "a.flac", subtype="PCM_S8"))
    assert np.abs(audio - TONE).max() <= 1e-2


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([TONE, np.zeros_like(TONE)], 1)
    audio, _ = read_audio(write(tmp_path / "a.wav", stereo, subtype="FLOAT"))
    np.testing.assert_allclose(audio, TONE / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_other_rates_are_resampled(tmp_path, rate):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    path = write(tmp_path / "a.wav", tone, rate)
    audio, got = read_audio(path, RATE)
    assert got == RATE and abs(len(audio) - RATE) <= 1
    middle = slice(2000, 14000)
    assert np.abs(audio[middle] - TONE[: len(audio)][middle]).max() < 1e-3
    assert read_audio(path)[1] == rate


def test_missing_empty_and_garbage(tmp_path):
    with pytest.raises(AudioFormatError, match="nothing.wav: no such file"):
        read_audio(tmp_path / "nothing.wav")
    with pytest.raises(AudioFormatError, match="no such file"):
        read_audio(tmp_path)
    for content in (b"", b"RIFF", b"not audio" * 100, b"RIFF\x24\x00\x00\x00WAVEfmt "):
        (tmp_path / "a.wav").write_bytes(content)
        with pytest.raises(AudioFormatError, match=r"a\.wav: not readable"):
            read_audio(tmp_path / "a.wav")
    with pytest.raises(AudioFormatError, match="holds no samples"):
        read_audio(write(tmp_path / "b.wav", TONE[:0]))


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_truncated_files(tmp_path, name):
    path = write(tmp_path / name)
    content = path.read_bytes()
    for share in (0.3, 0.6, 0.99):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(AudioFormatError, match=name):
            read_audio(path)


def test_samples_that_are_not_finite(tmp_path):
    bad = TONE.copy()
    bad[7] = np.nan
    with pytest.raises(AudioFormatError, match="NaN or infinite"):
        read_audio(write(tmp_path / "a.wav", bad, subtype="FLOAT"))


def header(data_bytes: int, bits: int = 16, rate: int = RATE, channels: int = 1) -> bytes:
    block = channels * bits // 8
    fmt = struct.pack("<HHIIHH", 1, channels, rate, rate * block & 0xFFFFFFFF, block, bits)
    riff = b"RIFF" + struct.pack("<I", 0x24) + b"WAVEfmt " + struct.pack("<I", 16) + fmt
    return riff + b"data" + struct.pack("<I", data_bytes)


def test_hostile_headers(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(header(0xFFFFFFF0) + bytes(1000))
    with pytest.raises(
        AudioFormatError, match="declares 4,294,967,280 bytes of samples, holds 1,000"
    ):
        read_audio(path)
    path.write_bytes(header(1000, bits=7) + bytes(1000))
    with pytest.raises(AudioFormatError, match="7 bits"):
        read_audio(path)
    for rate in (0, 12, 4_000_000):
        path.write_bytes(header(1000, rate=rate) + bytes(1000))
        with pytest.raises(AudioFormatError, match=r"a\.wav"):
            read_audio(path)


def test_headers_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("muomni_fast.reference.audio.files.MAX_SAMPLES", 20_000)
    stereo = np.stack([TONE, TONE], 1)
    with pytest.raises(AudioFormatError, match="declares 32,000 samples, more than 20,000"):
        audio_info(write(tmp_path / "a.flac", stereo))
    assert audio_info(write(tmp_path / "b.flac")).frames == RATE


def test_hours_are_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr("muomni_fast.reference.audio.files.MAX_SECONDS", 0.5)
    with pytest.raises(AudioFormatError, match="declares 1 s"):
        audio_info(write(tmp_path / "a.wav"))


def test_mutated_headers_only_raise_our_error(tmp_path):
    """A thousand files with random bytes in their header either read or raise AudioFormatError."""
    content = write(tmp_path / "a.wav", TONE[:2000]).read_bytes()
    random = np.random.default_rng(0)
    path, refused = tmp_path / "b.wav", 0
    for _ in range(1000):
        mutated = bytearray(content)
        for position in random.integers(0, 48, size=random.integers(1, 5)):
            mutated[position] = random.integers(256)
        path.write_bytes(mutated)
        try:
            audio, rate = read_audio(path)
            assert len(audio) <= len(content) and np.isfinite(audio).all() and rate > 0
        except AudioFormatError:
            refused += 1
    assert 100 < refused < 1000


def test_writing(tmp_path):
    write_audio(tmp_path / "a.wav", TONE, RATE)
    audio, rate = read_audio(tmp_path / "a.wav")
    assert rate == RATE and np.abs(audio - TONE).max() < 1e-4
    with pytest.warns(UserWarning, match=r"peak 1\.50.*clipped"):
        write_audio(tmp_path / "b.wav", 3 * TONE, RATE)
    assert np.abs(read_audio(tmp_path / "b.wav")[0]).max() <= 1
    for bad in (np.array([0.0, np.nan]), np.array([np.inf]), np.zeros(0), np.zeros((2, 2))):
        with pytest.raises(ValueError, match="audio: "):
            write_audio(tmp_path / "c.wav", bad, RATE)
    assert not (tmp_path / "c.wav").exists()
