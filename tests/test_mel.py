"""Log-mels against librosa, frame counts, and the rates of codes."""

import numpy as np
import pytest
import torch
from support.environment import SPEECH

from muomni_fast import (
    GriffinLimVocoder,
    MelConfig,
    SpeechCodec,
    log_mel,
    pool_frames,
    unpool_frames,
)
from muomni_fast import reference as ref
from muomni_fast.reference.audio.files import read_audio
from muomni_fast.reference.audio.mel import mel_filterbank, pad_audio, require_same_mel

CONFIGS = [
    MelConfig(),
    MelConfig(sample_rate=22050, n_mels=80),
    MelConfig(
        sample_rate=24000, n_fft=2048, win_length=1200, hop_length=300, n_mels=100, fmax=12000.0
    ),
    MelConfig(n_fft=400, win_length=400, hop_length=160, n_mels=40, fmin=50.0, fmax=7600.0),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_filterbank_equals_librosas(config):
    librosa = pytest.importorskip("librosa")
    expected = librosa.filters.mel(
        sr=config.sample_rate,
        n_fft=config.n_fft,
        n_mels=config.n_mels,
        fmin=config.fmin,
        fmax=config.fmax,
        dtype=np.float64,
    )
    assert np.abs(mel_filterbank(config) - expected).max() < 1e-6


def librosa_log_mel(padded: np.ndarray, config: MelConfig) -> np.ndarray:
    librosa = pytest.importorskip("librosa")
    mel = librosa.feature.melspectrogram(
        y=padded,
        sr=config.sample_rate,
        n_fft=config.n_fft,
        win_length=config.win_length,
        hop_length=config.hop_length,
        n_mels=config.n_mels,
        fmin=config.fmin,
        fmax=config.fmax,
        center=False,
        power=1.0,
    )
    return np.log(np.maximum(mel, config.log_floor))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("clip", ["ada-01", "ben-07", "cal-12"])
def test_log_mel_equals_librosas(config, clip):
    audio, _ = read_audio(SPEECH / "wavs" / f"{clip}.flac", config.sample_rate)
    audio = torch.from_numpy(audio)
    expected = librosa_log_mel(pad_audio(audio, config).numpy(), config)
    assert np.abs(log_mel(audio, config).numpy() - expected).max() < 1e-4


def test_log_mel_of_recordings_equals_librosas(recordings):
    config = MelConfig()
    files = sorted(recordings.rglob("*.flac"))[::12]
    assert len(files) >= 10
    for file in files:
        audio = torch.from_numpy(read_audio(file, config.sample_rate)[0])
        expected = librosa_log_mel(pad_audio(audio, config).numpy(), config)
        assert np.abs(log_mel(audio, config).numpy() - expected).max() < 1e-4, file


@pytest.mark.parametrize("samples", [1, 2, 255, 256, 257, 383, 512, 700, 1024, 5000])
def test_frames_are_samples_over_hop_rounded_up(samples):
    config = MelConfig()
    audio = torch.randn(2, samples)
    mel = log_mel(audio, config)
    assert mel.shape == (2, 128, -(-samples // 256)) and mel.isfinite().all()
    assert config.n_frames(samples) == mel.shape[-1]


@pytest.mark.parametrize("samples", [256, 512, 900])
def test_padding_reflects_as_numpy_does(samples):
    config, audio = MelConfig(), torch.randn(samples)
    whole = np.pad(audio.numpy(), (0, -samples % 256))
    assert np.array_equal(pad_audio(audio, config).numpy(), np.pad(whole, 384, mode="reflect"))


def test_every_sample_is_seen():
    """A window shorter than the hop would skip some: 1024 at hop 1280 never sees a fifth."""
    config = MelConfig()
    silence = torch.zeros(4096)
    floor = log_mel(silence, config)
    for position in range(0, 4096, 37):
        audio = silence.clone()
        audio[position] = 1.0
        assert (log_mel(audio, config) > floor + 1).any(), position


def test_level_is_kept_and_batch_mates_do_not_matter():
    """No min-max: doubling the audio adds log 2, whatever else is in the batch."""
    config, audio = MelConfig(), torch.randn(1, 8000)
    mel = log_mel(audio, config)
    torch.testing.assert_close(log_mel(2 * audio, config), mel + np.log(2), rtol=0, atol=1e-5)
    batch = log_mel(torch.cat([audio, 30 * torch.randn(1, 8000)]), config)
    torch.testing.assert_close(batch[:1], mel, rtol=0, atol=1e-5)


def test_log_mel_has_finite_gradients_on_silence():
    audio = torch.zeros(1, 2048, requires_grad=True)
    log_mel(audio, MelConfig()).sum().backward()
    assert audio.grad is not None and audio.grad.isfinite().all()


def test_first_use_in_inference_mode_leaves_training_possible():
    config = MelConfig(n_mels=77)
    with torch.inference_mode():
        log_mel(torch.randn(1, 1000), config)
    audio = torch.randn(1, 1000, requires_grad=True)
    log_mel(audio, config).sum().backward()
    assert audio.grad is not None


def test_empty_batches():
    assert log_mel(torch.zeros(0, 1000), MelConfig()).shape == (0, 128, 4)
    assert GriffinLimVocoder()(torch.zeros(0, 128, 4)).shape == (0, 1024)
    assert ref.HiFiGANVocoder(upsample_initial_channel=16)(torch.zeros(0, 128, 4)).shape == (
        0,
        1024,
    )


def test_log_mel_refuses():
    with pytest.raises(TypeError, match="int16"):
        log_mel(torch.zeros(100, dtype=torch.int16), MelConfig())
    with pytest.raises(ValueError, match=r"\(0,\)"):
        log_mel(torch.zeros(0), MelConfig())
    with pytest.raises(TypeError, match="audio: expected a torch.Tensor, got numpy.ndarray"):
        log_mel(np.zeros(100, np.float32), MelConfig())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(hop_length=0), "hop_length"),
        (dict(hop_length=255), "hop_length.*255"),
        (dict(n_fft=2048, hop_length=1280), "hop_length: expected at most win_length = 1024.*1280"),
        (dict(win_length=2048), "win_length.*2048"),
        (dict(fmax=9000.0), "fmax.*9000"),
        (dict(fmin=8000.0), "fmin"),
        (dict(n_mels=-1), "n_mels.*-1"),
        (dict(n_mels=10**9), "n_mels: expected an integer from 1 to 4,096, got 1000000000"),
        (dict(n_fft=1 << 40, win_length=1 << 40), "n_fft"),
        (dict(log_floor=0.0), "log_floor"),
        (dict(log_floor=float("nan")), "log_floor: expected a finite number, got nan"),
        (dict(fmax=float("inf"), sample_rate=10**6), "fmax: expected a finite number, got inf"),
        (dict(fmin=float("nan")), "fmin"),
    ],
)
def test_settings_out_of_range_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        MelConfig(**change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (dict(sample_rate=16000.5), "sample_rate: expected an integer.*16000.5"),
        (dict(n_mels=True), "n_mels: expected an integer.*True"),
        (dict(hop_length="256"), "hop_length.*'256'"),
        (dict(fmax="8000"), "fmax: expected a number, got '8000'"),
        (dict(fmin=None), "fmin"),
    ],
)
def test_settings_of_another_type_are_named(change, named):
    with pytest.raises(TypeError, match=named):
        MelConfig(**change)


def test_settings_are_kept_as_plain_numbers():
    """Which JSON can hold, whatever they came as."""
    config = MelConfig(n_mels=np.int64(80), fmax=np.float32(7600), fmin=0)
    assert config == MelConfig(n_mels=80, fmax=7600.0)
    assert [type(value) for value in (config.n_mels, config.fmin, config.fmax)] == [
        int,
        float,
        float,
    ]


def test_settings_that_differ_are_named():
    with pytest.raises(ValueError, match="hop_length: 256 != 320.*fmax: 8000.0 != 7000.0"):
        require_same_mel(MelConfig(), MelConfig(hop_length=320, fmax=7000.0), "test")


# Rates


@pytest.mark.parametrize("pooling, n_mels", [("mean", 128), ("stack", 640)])
def test_two_hundred_codes_are_sixteen_seconds(pooling, n_mels):
    rvq, config = ref.RVQ(n_mels=n_mels), MelConfig()
    vocoder = ref.HiFiGANVocoder(upsample_initial_channel=16)
    codec = SpeechCodec(rvq, vocoder, config, frames_per_code=5, pooling=pooling)
    codes = torch.randint(128, (1, 200, 2))
    audio = codec.decode(codes)
    assert audio.shape == (1, 256_000) and 256_000 / config.sample_rate == 16.0
    assert codec.encode(audio).shape == codes.shape
    assert codec.decode(codes, length=255_900).shape == (1, 255_900)


def test_griffin_lim_joins_at_the_same_rate():
    codec = SpeechCodec(ref.RVQ(), GriffinLimVocoder(n_iter=1), MelConfig(), frames_per_code=5)
    assert codec.decode(torch.randint(128, (1, 20, 2))).shape == (1, 25_600)


def test_pooling_averages_and_repeats_the_last_frame():
    mel = torch.arange(7.0)[:, None].expand(7, 3)
    assert pool_frames(mel, 5)[:, 0].tolist() == pytest.approx([2.0, (5 + 6 + 6 + 6 + 6) / 5])
    assert torch.equal(pool_frames(mel, 1), mel) and torch.equal(unpool_frames(mel, 1), mel)


def test_unpooling_is_linear():
    mel = torch.tensor([[0.0], [5.0], [10.0]])
    out = unpool_frames(mel, 5)[:, 0]
    assert out.shape == (15,)
    torch.testing.assert_close(out[2:13], torch.arange(0.0, 10.5, 1.0))


def test_stacking_puts_frames_side_by_side_and_takes_them_apart():
    mel = torch.randn(2, 10, 3)
    stacked = pool_frames(mel, 5, "stack")
    assert stacked.shape == (2, 2, 15) and torch.equal(stacked[1, 1, 3:6], mel[1, 6])
    assert torch.equal(unpool_frames(stacked, 5, "stack"), mel)
    ragged = unpool_frames(pool_frames(mel[:, :7], 5, "stack"), 5, "stack")
    assert torch.equal(ragged[:, :7], mel[:, :7])
    assert torch.equal(ragged[:, 7:], mel[:, 6:7].expand(2, 3, 3))  # the last frame goes on
    assert torch.equal(pool_frames(mel, 1, "stack"), mel)


def test_no_stacked_code_waits_for_the_next():
    rows = torch.randn(4, 15)
    whole = unpool_frames(rows, 5, "stack")
    assert torch.equal(unpool_frames(rows[:3], 5, "stack"), whole[:15])
    means = torch.randn(4, 3)  # where a frame lies between two means it does
    assert not torch.equal(unpool_frames(means[:3], 5), unpool_frames(means, 5)[:15])


def test_pooling_refuses():
    for function in (pool_frames, unpool_frames):
        for pooling in ("mean", "stack"):
            with pytest.raises(ValueError, match=r"T >= 1"):
                function(torch.zeros(2, 0, 3), 5, pooling)
            with pytest.raises(ValueError, match="frames_per_code.*0"):
                function(torch.zeros(2, 4, 3), 0, pooling)
        with pytest.raises(ValueError, match='pooling: expected "mean" or "stack", got \'sum\''):
            function(torch.zeros(2, 4, 3), 2, "sum")
    with pytest.raises(ValueError, match=r"mel: expected \(..., S, 5 \* n_mels\), got \(2, 13\)"):
        unpool_frames(torch.zeros(2, 13), 5, "stack")


def test_parts_that_do_not_fit_are_refused():
    config = MelConfig()
    with pytest.raises(ValueError, match="128.*256|256.*128"):
        SpeechCodec(ref.RVQ(), ref.HiFiGANVocoder(upsample_rates=(8, 4, 2, 2)), config)
    with pytest.raises(ValueError, match="quantizer has n_mels = 80.*128"):
        SpeechCodec(ref.RVQ(n_mels=80), GriffinLimVocoder(), config)
    with pytest.raises(ValueError, match="n_mels = 128, but frames_per_code = 5 .*= 128 have 640"):
        SpeechCodec(ref.RVQ(), GriffinLimVocoder(), config, 5, "stack")
    with pytest.raises(ValueError, match="quantizer has n_mels = 640.*128"):
        SpeechCodec(ref.RVQ(n_mels=640), GriffinLimVocoder(), config, 5)
    with pytest.raises(ValueError, match="vocoder has n_mels = 80.*128"):
        SpeechCodec(ref.RVQ(), ref.HiFiGANVocoder(n_mels=80), config)
