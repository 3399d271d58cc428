"""`SpeechCodec.speak`: text to audio, at once and while codes come."""

import pytest
import torch
from support.talkers import SENTENCES, learned, tiny

import muomni_fast
from muomni_fast import reference
from muomni_fast.reference import GriffinLimVocoder, MelConfig
from muomni_fast.reference.errors import CheckpointError
from muomni_fast.reference.rvq.digest import quantizer_digest

MEL = MelConfig(n_mels=8)
SMALL = {
    "n_mels": 8,
    "upsample_rates": (16, 16),
    "upsample_kernel_sizes": (32, 32),
    "upsample_initial_channel": 8,
    "resblock_kernel_sizes": (3,),
    "resblock_dilation_sizes": ((1, 2),),
}


def codec(library=reference, pooling="stack", per_code=5, vocoder=None, talker=None):
    torch.manual_seed(3)
    n_mels = 8 * per_code if pooling == "stack" else 8
    rvq = library.RVQ(3, 16, 8, n_mels=n_mels)
    vocoder = library.HiFiGANVocoder(**SMALL) if vocoder is None else vocoder
    talker = learned()[0] if talker is None else talker
    return library.SpeechCodec(rvq, vocoder, MEL, per_code, pooling, talker=talker).eval()


@pytest.mark.parametrize("library", [reference, muomni_fast], ids=["reference", "fast"])
@pytest.mark.parametrize(("pooling", "per_code"), [("stack", 5), ("mean", 5), ("mean", 1)])
def test_pieces_joined_are_the_whole(library, pooling, per_code):
    speaking = codec(library, pooling, per_code)
    for text, voice in zip(SENTENCES, ("ada", "ben", None), strict=True):
        whole = speaking.speak(text, voice)
        parts = list(speaking.speak(text, voice, stream=True))
        codes, lengths = learned()[0].generate(text, voice)
        assert whole.shape == (int(lengths) * per_code * 256,)
        torch.testing.assert_close(whole, speaking.decode(codes)[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)
        assert len(parts) > 1 or int(lengths) * per_code < 20


def test_audio_comes_before_the_end():
    """A first part when less than all codes are there."""
    talker, seen = learned()[0], []
    real = talker.step
    talker.step = lambda *args: seen.append(1) or real(*args)
    try:
        parts = codec(talker=talker).speak(SENTENCES[1], "ben", stream=True)
        next(parts)
        first = len(seen)
        list(parts)
    finally:
        del talker.step
    assert first < len(seen)


def test_long_texts_and_caps(caplog):
    talker = tiny(max_text=22)
    speaking = codec(talker=talker)
    text = " ".join(SENTENCES[:1] * 3)
    said = speaking.speak(text, max_frames=4)
    assert len(said) == 3 * len(speaking.speak(SENTENCES[0], max_frames=4))
    torch.testing.assert_close(
        torch.cat([*speaking.speak(text, max_frames=4, stream=True)]), said, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("",), ValueError, "text: expected text, got nothing to say"),
        (("a" * 10_000,), ValueError, "text: expected sentences of at most 512 bytes"),
        (("\udfff",), ValueError, "half of a surrogate pair"),
        (("Two.", "eve"), ValueError, "speaker: expected None or one of"),
        (("Two.", ["ada"]), TypeError, "speaker: expected a string, got \\['ada'\\]"),
        (("Two.", 5), TypeError, "speaker: expected a string, got 5"),
    ],
)
def test_what_cannot_be_said(arguments, error, message, stream):
    with pytest.raises(error, match=message):
        codec().speak(*arguments, stream=stream)


def test_options_that_are_not_known():
    for stream in (False, True):
        with pytest.raises(TypeError, match="speak: expected temperature, .*, got 'volume'"):
            codec().speak("Two.", stream=stream, volume=1)
    with pytest.raises(TypeError, match="stream: expected True or False, got 'yes'"):
        codec().speak("Two.", stream="yes")


def test_nothing_said_is_as_any_audio(monkeypatch):
    """An end at once; of the dtype of the vocoder, as the pieces are."""
    speaking = codec(talker=tiny()).double()

    def ended(codes, cache):
        logits = torch.zeros(1, 3, 17, dtype=torch.float64)
        logits[:, 0, -1] = 1
        return logits

    monkeypatch.setattr(speaking.talker, "step", ended)
    said = speaking.speak("Two.")
    assert said.shape == (0,) and said.dtype == torch.float64
    assert not [*speaking.speak("Two.", stream=True)]


@pytest.mark.parametrize("other", ["talker.json", reference.RVQ(3, 16, 8, n_mels=40)], ids=type)
def test_a_talker_that_is_none(other):
    with pytest.raises(TypeError, match="talker: expected a Talker, got (str|RVQ)"):
        codec(talker=other)


def test_what_does_not_go_together():
    with pytest.raises(RuntimeError, match="speak: this codec has no Talker"):
        reference.SpeechCodec(reference.RVQ(3, 16, 8, n_mels=8), GriffinLimVocoder(MEL), MEL).speak(
            "Two."
        )
    griffin_lim = codec(vocoder=GriffinLimVocoder(MEL, n_iter=1))
    assert griffin_lim.speak("Two.").shape == (1280,)
    with pytest.raises(ValueError, match="stream: expected a HiFiGANVocoder, got GriffinLim"):
        griffin_lim.speak("Two.", stream=True)
    with pytest.raises(ValueError, match="talker: has n_codebooks = 2, but the quantizer has 3"):
        codec(talker=tiny(2))
    other = reference.Talker(3, 16, quantizer="0" * 64)
    with pytest.raises(ValueError, match="talker: expected the quantizer it was trained with"):
        codec(talker=other)


@pytest.mark.parametrize("library", [reference, muomni_fast], ids=["reference", "fast"])
def test_from_checkpoints(library, tmp_path, caplog):
    pytest.importorskip("safetensors")
    from muomni_fast.reference.checkpoint import save_model

    rvq = reference.RVQ(3, 16, 8, n_mels=40)
    kept = {"frames_per_code": 5, "pooling": "stack"}
    save_model(tmp_path / "rvq.json", "rvq", rvq, MEL, **kept)
    for name, digest in (("talker", quantizer_digest(rvq, 5, "stack")), ("other", "0" * 64)):
        talker = reference.Talker(3, 16, 32, 2, 2, quantizer=digest)
        save_model(tmp_path / f"{name}.json", "talker", talker, MEL, **kept)
    load = library.SpeechCodec.from_checkpoints
    speaking = load(tmp_path / "rvq.json", talker=tmp_path / "talker.json")
    assert type(speaking.talker) is library.Talker and not speaking.talker.training
    assert load(tmp_path / "rvq.json").talker is None
    with pytest.raises(CheckpointError, match="other.json: talker: expected the quantizer"):
        load(tmp_path / "rvq.json", talker=tmp_path / "other.json")
    with pytest.raises(CheckpointError, match="expected a talker, got a rvq"):
        load(tmp_path / "rvq.json", talker=tmp_path / "rvq.json")
