"""Audio files of every kind, most of them broken."""

import os
from pathlib import Path

import numpy as np
import pytest

from muomni_fast import AudioFormatError
from muomni_fast.reference.audio.files import audio_info, read_audio, write_audio

soundfile = pytest.importorskip("soundfile")
from support.audio_files import KINDS, RATE, TONE, encoded, write  # noqa: E402


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
    (tmp_path / "a.wav").touch()
    with pytest.raises(AudioFormatError, match=r"a\.wav: not readable as audio: empty"):
        read_audio(tmp_path / "a.wav")
    for content in (b"RIFF", b"not audio" * 100, b"RIFF\x24\x00\x00\x00WAVEfmt "):
        (tmp_path / "a.wav").write_bytes(content)
        with pytest.raises(AudioFormatError, match=r"a\.wav: not readable"):
            read_audio(tmp_path / "a.wav")
    with pytest.raises(AudioFormatError, match="holds no samples"):
        read_audio(write(tmp_path / "b.wav", TONE[:0]))


@pytest.mark.parametrize("name", ["way/too/deep", "a" * 300 + ".wav", "zero\0byte.wav"])
def test_names_that_cannot_be(tmp_path, name):
    (tmp_path / "way").touch()
    with pytest.raises(AudioFormatError, match=f"{name}: no"):
        audio_info(tmp_path / name)


def test_only_regular_files_are_read(tmp_path):
    """Reading a pipe that nobody writes to would wait for ever."""
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "link.wav").symlink_to("pipe.wav")
    for path in (tmp_path / "pipe.wav", tmp_path / "link.wav", tmp_path, Path("/dev/zero")):
        with pytest.raises(AudioFormatError, match=f"^{path}: not a regular file$"):
            read_audio(path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_container(tmp_path, kind):
    path = tmp_path / kind
    path.write_bytes(encoded(kind, np.stack([TONE, 0.5 * TONE], 1)))
    assert audio_info(path).channels == 2
    audio, rate = read_audio(path)
    assert rate == RATE and len(audio) == len(TONE)
    assert np.sqrt(np.mean((audio - 0.75 * TONE) ** 2)) < 0.02  # by Opus; its bit rate is low


def test_samples_that_are_not_finite(tmp_path):
    for value in (np.nan, np.inf, -np.inf):
        bad = TONE.copy()
        bad[7] = value
        with pytest.raises(AudioFormatError, match="NaN or infinite"):
            read_audio(write(tmp_path / "a.wav", bad, subtype="FLOAT"))
    with pytest.raises(AudioFormatError, match="NaN or infinite"):
        read_audio(write(tmp_path / "a.wav", 1e300 * TONE.astype(float), subtype="DOUBLE"))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("rate", [None, RATE, 22050])
@pytest.mark.parametrize("peak", [3e38, -3.7e19, 1.1e6])
def test_peaks_far_beyond_full_scale(tmp_path, channels, rate, peak):
    """What averaging, resampling or a spectrum's squares would overflow by."""
    audio = np.zeros((1000, channels), np.float32)
    audio[300:500] = peak
    path = write(tmp_path / "a.wav", audio, subtype="FLOAT")
    value = f"{abs(peak):.1e}".replace("+", r"\+")
    with pytest.raises(AudioFormatError, match=rf"a\.wav: peak {value} is above 1e\+06 x full"):
        read_audio(path, rate)


def test_peaks_that_are_read(tmp_path):
    """Float files scaled as integers are, and channels that cancel out."""
    loud = write(tmp_path / "a.wav", 32768 * TONE, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(loud)[0], 32768 * TONE)
    both = np.full((1000, 2), 3e38, np.float32) * [1, -1]
    assert (read_audio(write(tmp_path / "b.wav", both, subtype="FLOAT"), 8000)[0] == 0).all()
    edge = write(tmp_path / "c.wav", np.sign(TONE[1:-1]) * np.float32(1e6), subtype="FLOAT")
    assert np.abs(read_audio(edge)[0]).max() == 1e6
    with pytest.raises(AudioFormatError, match="peak 1.*e.06 is above"):  # the resampler overshoots
        read_audio(edge, 22050)


def test_blocks_join(tmp_path, monkeypatch):
    stereo = np.stack([TONE, np.roll(TONE, 99)], 1)
    for kind in ("pcm24.wav", "a.flac", "vorbis.ogg", "a.opus"):
        (tmp_path / kind).write_bytes(encoded(kind, stereo))
        whole, _ = read_audio(tmp_path / kind)
        with monkeypatch.context() as patch:
            patch.setattr("muomni_fast.reference.audio.files.BLOCK_SAMPLES", 3000)
            np.testing.assert_array_equal(read_audio(tmp_path / kind)[0], whole)


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
