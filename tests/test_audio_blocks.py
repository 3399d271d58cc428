"""Long audio in blocks: read, analysed and written piece by piece, it is the whole."""

import os
import wave

import numpy as np
import pytest
import torch

pytest.importorskip("soundfile")
import soundfile  # noqa: E402
from support.audio_files import RATE, TONE, write  # noqa: E402

from muomni_fast import AudioFormatError, CheckpointError, MelConfig, log_mel  # noqa: E402
from muomni_fast.reference.audio import files  # noqa: E402
from muomni_fast.reference.audio.files import audio_blocks, audio_info, read_audio  # noqa: E402
from muomni_fast.reference.audio.mel_blocks import mel_blocks  # noqa: E402
from muomni_fast.reference.audio.wav import wav_writer  # noqa: E402

NOISE = 0.1 * np.random.default_rng(0).standard_normal(3 * RATE + 17).astype(np.float32)


@pytest.mark.parametrize("block", [1 << 18, 1000])
@pytest.mark.parametrize("rate", [None, 8000, 22050, 48000])
def test_blocks_are_the_whole_file(tmp_path, monkeypatch, rate, block):
    pytest.importorskip("soxr")
    path = write(tmp_path / "a.wav", np.stack([NOISE, TONE.repeat(4)[: len(NOISE)]], 1))
    import soxr

    mono = soundfile.read(path, dtype="float32")[0].mean(1, dtype=np.float64).astype(np.float32)
    expected = mono if rate is None else soxr.resample(mono, RATE, rate, quality="HQ")
    monkeypatch.setattr(files, "BLOCK_SAMPLES", block)
    blocks = [*audio_blocks(path, rate)]
    assert np.array_equal(np.concatenate(blocks), expected) and len(blocks) > (
        20 if block == 1000 else 0
    )
    audio, got = read_audio(path, rate)
    assert np.array_equal(audio, expected) and got == (rate or RATE)


def test_a_file_too_long_for_memory_is_read_in_blocks(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", NOISE)
    for name, message in (("MAX_SECONDS", "declares 3 s"), ("MAX_SAMPLES", "48,017 samples")):
        with monkeypatch.context() as patch:
            patch.setattr(files, name, 2)
            for call in (audio_info, read_audio):
                with pytest.raises(AudioFormatError, match=message):
                    call(path)
            assert audio_info(path, streamed=True).frames == len(NOISE)
            assert sum(map(len, audio_blocks(path))) == len(NOISE)
    monkeypatch.setattr(files, "MAX_STREAMED_SECONDS", 2)
    with pytest.raises(AudioFormatError, match="declares 3 s, more than 2 s"):
        next(audio_blocks(path))


CONFIGS = [
    MelConfig(),
    MelConfig(n_fft=256, win_length=256, hop_length=256, n_mels=8),  # frames that do not overlap
    MelConfig(n_fft=1024, win_length=800, hop_length=100, n_mels=8),  # frames over ten hops
    MelConfig(n_fft=512, win_length=512, hop_length=300, n_mels=8),  # padding within a hop
]


@pytest.mark.parametrize("config", CONFIGS)
def test_mels_of_blocks_are_the_wholes(config):
    audio = torch.from_numpy(NOISE[:9000])
    random = np.random.default_rng(0)
    for length in (1, 99, 1024, 1025, 3000, 9000):
        whole = log_mel(audio[:length], config)
        for frames in (1, 5, 16):
            sizes, blocks = [], []
            while sum(sizes) < length:
                sizes.append(int(random.choice([1, 100, 1500, 4000])))
                blocks.append(audio[:length][sum(sizes[:-1]) : sum(sizes)])
            pieces = [*mel_blocks(blocks, config, frames)]
            assert all(piece.shape[1] == frames for piece in pieces[:-1])
            # No more than the rounding of float32, where float64 sums come in another order.
            torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-5)
    assert [*mel_blocks([], config, 3)] == []


def test_pieces_become_one_file(tmp_path):
    path = tmp_path / "a.wav"
    with wav_writer(path, RATE, "made of abc") as file:
        for piece in np.split(NOISE, [1, 5000]):
            file.write(piece)
        file.write(NOISE)
        file.cut(len(NOISE))
        assert not path.exists()
    with soundfile.SoundFile(path) as sound:
        assert (sound.comment, sound.samplerate, sound.subtype) == ("made of abc", RATE, "PCM_16")
    with wave.open(str(path)) as sound:  # another reader
        assert sound.getparams()[:4] == (1, 2, RATE, len(NOISE))
        found = np.frombuffer(sound.readframes(len(NOISE)), "<i2")
    assert np.array_equal(found, np.rint(NOISE.clip(-1, 1) * 32767))
    assert os.listdir(tmp_path) == ["a.wav"]


def test_what_fails_leaves_the_file_before(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), wav_writer(path, RATE) as file:
        file.write(NOISE)
        raise KeyboardInterrupt
    with (
        pytest.raises(AudioFormatError, match="refusing to write NaN"),
        wav_writer(path, RATE) as file,
    ):
        file.write(np.array([0.0, np.nan]))
    with (
        pytest.raises(CheckpointError, match="cannot write audio"),
        wav_writer(tmp_path / "none" / "a.wav", RATE),
    ):
        pass
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["a.wav"]
