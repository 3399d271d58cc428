"""Tensors of our own are made where they belong, whatever torch's default device is."""

import pytest
import torch

import muomni_fast
from muomni_fast import reference
from muomni_fast.reference.audio import mel as mels
from muomni_fast.reference.training.codebook_health import CodebookHealth, start_from_data


@pytest.fixture
def default_meta(monkeypatch):
    """Allocating without a device gives a tensor without values; nothing is cached from before."""
    monkeypatch.setattr(mels, "_constants", {})
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def frames(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cpu")


def test_mels_and_griffin_lim(default_meta):
    config = reference.MelConfig()
    mel = reference.log_mel(frames(1, 2000), config)
    assert mel.isfinite().all()
    assert reference.GriffinLimVocoder(config, n_iter=2)(mel).isfinite().all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_start_and_health_of_codebooks(default_meta, bias, ema_decay):
    with torch.device("cpu"):
        rvq = muomni_fast.RVQ(2, 16, 8, n_mels=12, bias=bias)
    mel = frames(9, 12)  # fewer than codes
    start_from_data(rvq, mel, torch.Generator().manual_seed(0))
    health = CodebookHealth(rvq, None, ema_decay=ema_decay, usage_decay=0.1)
    assert sum(health.after_step(mel, rvq.encode(mel)) for _ in range(3)) > 0
    assert rvq(mel).mel.isfinite().all()


@pytest.mark.parametrize("prepared", [False, True])
def test_modules(default_meta, prepared):
    with torch.device("cpu"):
        rvq, vocoder = muomni_fast.RVQ(), muomni_fast.HiFiGANVocoder(upsample_initial_channel=16)
    if prepared:
        rvq, vocoder = rvq.eval().prepare(), vocoder.eval().prepare()
    codec = muomni_fast.SpeechCodec(rvq, vocoder, reference.MelConfig())
    codes = codec.encode(frames(2, 2000))
    assert codec.decode(codes).isfinite().all()
    assert rvq(frames(3, 128)).mel.isfinite().all()
    mel = frames(2, 128, 9)
    assert vocoder(mel, lengths=[9, 4]).isfinite().all()
    assert all(audio.isfinite().all() for audio in vocoder.stream(mel.split(3, dim=2)))
    assert vocoder.mel_to_audio(mel[0].numpy()).isfinite().all()
