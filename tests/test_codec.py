"""The codec: shapes it takes and gives, and padding in batches of codes."""

import pytest
import torch
from torch import Tensor, nn

import muomni_fast
from muomni_fast import reference
from muomni_fast.reference import log_mel
from muomni_fast.reference.codec import decode_mel, encode_mel

CONFIG = reference.MelConfig(n_mels=8, n_fft=64, win_length=64, hop_length=8, sample_rate=16000)
LIBS = pytest.mark.parametrize("lib", [reference, muomni_fast], ids=["reference", "fast"])
VOCODERS = pytest.mark.parametrize("kind", ["hifigan", "griffin-lim"])


def codec_of(
    lib, kind: str, frames_per_code: int = 1, pooling: str = "mean"
) -> reference.SpeechCodec:
    torch.manual_seed(0)
    vocoder: nn.Module = lib.GriffinLimVocoder(CONFIG, n_iter=2)
    if kind == "hifigan":
        vocoder = lib.HiFiGANVocoder(8, (4, 2), (8, 4), 16)
    rvq = lib.RVQ(2, 8, 4, 8 if pooling == "mean" else 8 * frames_per_code, bias=True)
    return lib.SpeechCodec(rvq, vocoder, CONFIG, frames_per_code, pooling).eval()


@LIBS
def test_one_channel_may_be_named(lib):
    codec, audio = codec_of(lib, "hifigan"), torch.randn(2, 100)
    codes = codec.encode(audio)
    assert codes.shape == (2, 13, 2)
    assert torch.equal(codec.encode(audio[:, None]), codes)
    for shape in ((100,), (2, 2, 100), (1, 2, 1, 100)):
        with pytest.raises(ValueError, match=r"audio: expected \(B, L\) or \(B, 1, L\), got"):
            codec.encode(torch.zeros(shape))


@LIBS
def test_channels_that_stand_last_are_no_batch(lib):
    """Of more clips than anybody has of one or two samples; fewer are what they say."""
    codec = codec_of(lib, "griffin-lim")
    for channels in (1, 2):
        with pytest.raises(
            ValueError, match=r"got \(1001, .\): channels last\? Average them"
        ) as no:
            codec.encode(torch.zeros(1001, channels))
        assert "audio.mean(1)[None]" in str(no.value)
        assert codec.encode(torch.zeros(1000, channels)).shape == (1000, 1, 2)
    assert codec.encode(torch.zeros(1001, 2).mean(1)[None]).shape == (1, 126, 2)
    assert codec.encode(torch.zeros(1001, 3)).shape == (1001, 1, 2)


@LIBS
def test_mels_that_stand_the_other_way_are_named(lib):
    codec = codec_of(lib, "hifigan")
    rvq, vocoder = codec.rvq, codec.vocoder
    with pytest.raises(ValueError, match=r"got \(1, 8, 5\); mel.transpose\(-1, -2\) has it"):
        rvq.encode(torch.zeros(1, 8, 5))
    with pytest.raises(ValueError, match=r"got \(1, 5, 8\); mel.transpose\(1, 2\) has it"):
        vocoder(torch.zeros(1, 5, 8))
    for wrong in (torch.zeros(1, 7, 5), torch.zeros(5)):
        with pytest.raises(ValueError, match=r"mel: expected .*, got \([^()]*\)$"):
            rvq.encode(wrong)
        with pytest.raises(ValueError, match=r"mel: expected .*, got \([^()]*\)$"):
            vocoder(wrong)


@LIBS
@VOCODERS
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("padding_code", [None, -1])
def test_no_steps_are_no_samples(lib, kind, batch, padding_code):
    codec = codec_of(lib, kind, 5)
    codes = torch.empty(batch, 0, 2, dtype=torch.int64)
    for length in (None, 7):
        assert codec.decode(codes, length, padding_code).shape == (batch, 0)
    assert codec.decode(torch.zeros(0, 3, 2, dtype=torch.int64), None, padding_code).shape[0] == 0


@LIBS
def test_audio_is_cut_to_the_callers_length(lib):
    codec, codes = codec_of(lib, "hifigan"), torch.randint(8, (2, 3, 2))
    whole = codec.decode(codes)
    for length in (0, 5, 24, 99):
        assert torch.equal(codec.decode(codes, length=length), whole[:, :length])
    with pytest.raises(TypeError, match="length: expected an integer of at least 0, got 2.5"):
        codec.decode(codes, length=2.5)


@LIBS
@pytest.mark.parametrize(
    "kind, frames_per_code, pooling",
    [
        ("hifigan", 1, "mean"),
        ("hifigan", 5, "mean"),
        ("hifigan", 5, "stack"),
        ("griffin-lim", 1, "mean"),
        ("griffin-lim", 5, "mean"),  # stacked random frames leap, and it makes much of roundings
    ],
)
@pytest.mark.parametrize("padding_code", [-1, 8, -100])
def test_padding_at_the_end_changes_nothing(lib, kind, frames_per_code, pooling, padding_code):
    """Each item is the same as alone, and silent after its end."""
    codec, steps = codec_of(lib, kind, frames_per_code, pooling), [4, 0, 6, 1]
    codes = torch.full((4, 6, 2), padding_code)
    for item, n in enumerate(steps):
        codes[item, :n] = torch.randint(8, (n, 2))
    audio = codec.decode(codes, padding_code=padding_code)
    for item, n in enumerate(steps):
        alone = codec.decode(codes[item : item + 1, :n])[0]
        assert alone.shape == (n * frames_per_code * 8,)
        torch.testing.assert_close(audio[item, : len(alone)], alone, rtol=1e-5, atol=1e-6)
        assert (audio[item, len(alone) :] == 0).all()
    assert torch.equal(codec.decode(codes, 50, padding_code), audio[:, :50])


@LIBS
@VOCODERS
@pytest.mark.parametrize("pooling", ["mean", "stack"])
def test_padding_elsewhere_is_silence(lib, kind, pooling):
    codec, codes = codec_of(lib, kind, 2, pooling), torch.randint(8, (3, 9, 2))
    padded = torch.zeros(3, 9, dtype=torch.bool)
    padded[0, :3] = padded[1, 4] = padded[2, ::2] = True
    codes[padded] = -1
    audio = codec.decode(codes, padding_code=-1).view(3, 9, 16)
    assert audio.isfinite().all()
    assert (audio[padded] == 0).all()
    assert (audio[~padded].abs().amax(1) > 0).all()


@LIBS
@pytest.mark.parametrize("prepared", [False, True])
def test_padded_frames_are_zero(lib, prepared):
    rvq = codec_of(lib, "hifigan").rvq
    if prepared and lib is muomni_fast:
        rvq.prepare()
    codes = torch.randint(8, (2, 5, 2))
    expected = rvq.decode(codes)
    padded = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    expected = expected.masked_fill(padded[..., None], 0)
    codes[padded] = -1
    assert torch.equal(rvq.decode(codes, padding_code=-1), expected)
    assert torch.equal(rvq.decode(codes[..., :1], -1)[padded], expected[padded])


@LIBS
def test_padding_that_is_none_is_refused(lib):
    codec, codes = codec_of(lib, "hifigan"), torch.randint(8, (1, 5, 2))
    codes[0, 2, 1] = codes[0, 3, 0] = -1
    for decode in (codec.decode, codec.rvq.decode):
        with pytest.raises(ValueError, match="codes: 2 frames are padding in some codebooks only"):
            decode(codes, padding_code=-1)
        with pytest.raises(ValueError, match="padding_code: expected none of 0 to 7, got 3"):
            decode(codes, padding_code=3)
        with pytest.raises(TypeError, match="padding_code: expected an integer"):
            decode(codes, padding_code=-1.0)
        with pytest.raises(IndexError, match="codes: expected 0 to 7, got -1 to"):
            decode(codes)
        with pytest.raises(IndexError, match="codes: expected 0 to 7, got -1 to"):
            decode(codes, padding_code=-2)


@LIBS
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("padding_code", [-1, 256, 1 << 32, 65536 + 5])
def test_padding_does_not_wrap_in_narrow_codes(lib, dtype, padding_code):
    rvq = lib.RVQ(1, 256, 4, 8)
    codes = torch.arange(min(256, torch.iinfo(dtype).max + 1))[:, None]
    assert torch.equal(rvq.decode(codes.to(dtype), padding_code), rvq.decode(codes))
    with pytest.raises(ValueError, match=r"codes: expected \(\.\.\., k\), got \(\)"):
        rvq.decode(torch.tensor(-1), padding_code)


def test_padding_learns_nothing():
    rvq = muomni_fast.RVQ(2, 8, 4, 8)
    codes = torch.tensor([[1, 2], [-1, -1]])
    rvq.decode(codes, padding_code=-1).sum().backward()
    alone = muomni_fast.RVQ(2, 8, 4, 8)
    alone.load_state_dict(rvq.state_dict())
    alone.decode(codes[:1]).sum().backward()
    for found, expected in zip(rvq.parameters(), alone.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad)


@pytest.mark.long
def test_padded_decoding_compiles():
    rvq = muomni_fast.RVQ(2, 8, 4, 8).eval()
    codes = torch.tensor([[1, 2], [-1, -1], [3, 0]])
    compiled = torch.compile(rvq.decode, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(codes, -1), rvq.decode(codes, -1))


def test_decoding_a_mel_is_what_a_codec_does():
    codec = codec_of(reference, "griffin-lim", 5)
    codes = torch.randint(8, (2, 3, 2))
    mel = decode_mel(codec.rvq, codes, 5)
    assert isinstance(mel, Tensor) and torch.equal(codec.decode(codes), codec.vocoder(mel))


@LIBS
def test_stacked_codes_stand_for_their_own_frames_only(lib):
    """Another code changes the frames of its own step, and with them no other's."""
    codec = codec_of(lib, "griffin-lim", 5, "stack")
    codes = torch.randint(8, (1, 6, 2))
    frames = decode_mel(codec.rvq, codes, 5, "stack")  # (B, n_mels, T)
    assert frames.shape == (1, 8, 30)
    codes[0, 3] = (codes[0, 3] + 1) % 8
    changed = (decode_mel(codec.rvq, codes, 5, "stack") != frames).any(1)[0]
    assert changed.nonzero()[:, 0].tolist() == list(range(15, 20))
    audio = torch.randn(2, 5 * 8 * 3 - 7)  # three steps, the last not full
    assert codec.encode(audio).shape == (2, 3, 2)
    assert codec.encode(audio).equal(encode_mel(codec.rvq, log_mel(audio, CONFIG), 5, "stack"))
