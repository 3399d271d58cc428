"""Griffin-Lim against librosa's, on the filterbank the mels were made with."""

import numpy as np
import pytest
import torch
from support.environment import SPEECH

from muomni_fast import GriffinLimVocoder, MelConfig, log_mel
from muomni_fast.reference.audio.files import read_audio
from muomni_fast.reference.audio.mel import mel_filterbank
from muomni_fast.reference.vocoder.griffin_lim import MOMENTUM, mel_to_magnitude

CLIPS = ["ada-02", "ben-09", "cal-15"]


def clip_mel(name: str, config: MelConfig) -> torch.Tensor:
    audio, _ = read_audio(SPEECH / "wavs" / f"{name}.flac", config.sample_rate)
    return log_mel(torch.from_numpy(audio), config)


def test_mel_error_is_at_most_librosas():
    """From the same magnitudes, with equal iterations and momentum, at most 5 % above librosa's."""
    librosa = pytest.importorskip("librosa")
    config = MelConfig()
    ours, theirs = [], []
    for name in CLIPS:
        mel = clip_mel(name, config)
        audio = GriffinLimVocoder(config, n_iter=32).mel_to_audio(mel)
        ours.append(float((log_mel(audio, config) - mel).abs().mean()))
        magnitude = mel_to_magnitude(mel[None], config)[0].numpy()
        audio = librosa.griffinlim(
            magnitude, n_iter=32, hop_length=256, n_fft=1024, momentum=MOMENTUM, random_state=0
        )
        again = np.abs(librosa.stft(audio, n_fft=1024, hop_length=256))  # centred, like its input
        again = np.log(np.maximum(mel_filterbank(config) @ again, config.log_floor))
        theirs.append(float(np.abs(again - mel.numpy()).mean()))
    print(f"mel L1: ours {np.mean(ours):.4f}, librosa {np.mean(theirs):.4f}")
    assert np.mean(ours) <= 1.05 * np.mean(theirs)


def test_inverts_the_filterbank_the_mel_was_made_with():
    """Every setting counts: fmax, bands and rate differ here from the defaults."""
    config = MelConfig(sample_rate=22050, n_mels=80, fmax=7000.0)
    mel = clip_mel("ada-02", config)
    again = torch.tensor(mel_filterbank(config)).float() @ mel_to_magnitude(mel[None], config)[0]
    assert (again.clamp(min=config.log_floor).log() - mel).abs().mean() < 0.01
    audio = GriffinLimVocoder(config).mel_to_audio(mel)
    assert (log_mel(audio, config) - mel).abs().mean() < 0.25


@pytest.mark.parametrize("frames", [1, 2, 5, 127, 128, 129])
def test_lengths_and_no_guessing_of_axes(frames):
    config = MelConfig()
    mel = clip_mel("ben-09", config)[:, 20 : 20 + frames]
    vocoder = GriffinLimVocoder(config, n_iter=4)
    assert vocoder.mel_to_audio(mel).shape == (frames * 256,)
    assert vocoder(mel.expand(3, -1, -1)).shape == (3, frames * 256)
    assert vocoder(mel[None]).isfinite().all()


def test_items_do_not_depend_on_batch_mates_and_repeat_exactly():
    config = MelConfig()
    mel = clip_mel("cal-15", config)[:, :60]
    vocoder = GriffinLimVocoder(config)
    alone = vocoder(mel[None])
    assert torch.equal(vocoder(mel[None]), alone)
    batch = vocoder(torch.stack([mel + 3, mel]))
    torch.testing.assert_close(batch[1:], alone, rtol=0, atol=1e-3)


def test_silence_stays_silent():
    config = MelConfig()
    mel = torch.full((1, 128, 20), float(np.log(config.log_floor)))
    assert GriffinLimVocoder(config)(mel).abs().max() == 0


def test_autocast_does_not_reach_it_and_nan_shows():
    vocoder, mel = (
        GriffinLimVocoder(n_iter=4),
        clip_mel("ben-09", MelConfig())[None, :, :20].clone(),
    )
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(vocoder(mel), vocoder(mel.clone()))
            inside = vocoder(mel)
        assert torch.equal(inside, vocoder(mel))
    mel[0, 3, 4] = torch.nan
    assert vocoder(mel).isnan().any()


def test_accepts_arrays_and_refuses_other_shapes():
    vocoder = GriffinLimVocoder(n_iter=1)
    assert vocoder.mel_to_audio(np.zeros((128, 3), dtype=np.float32)).shape == (768,)
    with pytest.raises(ValueError, match=r"\(n_mels, T\), got \(1, 128, 3\)"):
        vocoder.mel_to_audio(np.zeros((1, 128, 3), dtype=np.float32))
    for shape in ((1, 80, 4), (1, 128, 0), (128, 4)):
        with pytest.raises(ValueError, match=r"\(B, 128, T >= 1\), got"):
            vocoder(torch.zeros(shape))
    with pytest.raises(TypeError, match="int64"):
        vocoder(torch.zeros(1, 128, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="n_iter.*0"):
        GriffinLimVocoder(n_iter=0)
