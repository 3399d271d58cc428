"""`muomni-fast speak`: what the codec's Talker says; and that `load` finds one."""

import pytest
import torch

for _needed in ("typer", "soundfile", "soxr", "safetensors", "tqdm"):
    pytest.importorskip(_needed)
from support.command_line import MEL, RATE, audio_of, call  # noqa: E402
from support.talkers import SENTENCES, learned  # noqa: E402

import muomni_fast  # noqa: E402
from muomni_fast import GriffinLimVocoder, SpeechCodec  # noqa: E402


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> SpeechCodec:
    """A codec whose Talker knows three sentences by heart, saved in `codec.folder`."""
    torch.manual_seed(0)
    rvq = muomni_fast.RVQ(3, 16, 8, n_mels=5 * MEL.n_mels, bias=True)
    with torch.no_grad():
        rvq.proj_out.bias.fill_(-9)
    talker = learned()[0]
    codec = SpeechCodec(rvq, GriffinLimVocoder(MEL), MEL, 5, "stack", talker=talker).eval()
    codec.folder = tmp_path_factory.mktemp("model")
    muomni_fast.save(codec, codec.folder)
    return codec


def test_a_talker_is_saved_and_loaded(codec):
    again = muomni_fast.load(codec.folder)
    assert type(again.talker) is muomni_fast.Talker
    expected = codec.talker.generate(SENTENCES, "ada")
    for talker in (again.talker, muomni_fast.load(codec.folder / "talker.json")):
        found = talker.generate(SENTENCES, "ada")
        assert torch.equal(found.codes, expected.codes)


def test_speaking(tmp_path, codec):
    model = "--model", codec.folder
    for voice in ("ada", None):
        options = () if voice is None else ("--speaker", voice)
        out = tmp_path / "out" / "a.wav"
        done = call("speak", SENTENCES[0], "-o", out, *model, *options, "--json", "--overwrite")
        assert done.code == 0 and done.json["done"] == 1, done.err
        expected = codec.speak(SENTENCES[0], voice).clip(-1, 1)
        torch.testing.assert_close(audio_of(out)[0], expected, rtol=0, atol=2e-3)
        assert done.json["seconds_of_audio"] == pytest.approx(len(expected) / RATE)
    drawn = []
    for seed in (1, 1, 2):
        options = "--temperature", 5, "--seed", seed
        assert call("speak", SENTENCES[1], "-o", out, *model, *options, "--overwrite").code == 0
        drawn.append(out.read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]
    said = call("speak", SENTENCES[1], "-o", out, *model, *options, "--json").json
    assert (said["skipped"], said["files"][0]["seconds"]) == (1, audio_of(out).shape[1] / RATE)
    done = call("speak", SENTENCES[1], "-o", out, *model, "--temperature", 5, "--seed", 3)
    assert done.code == 1 and "made with seed 2 instead of 3; --overwrite" in done.err
    assert out.read_bytes() == drawn[2]
    options = "--temperature", 5, "--top-k", 2, "--max-frames", 3, "--seed", 1, "--overwrite"
    assert call("speak", SENTENCES[1], "-o", out, *model, *options).code == 0
    expected = codec.speak(SENTENCES[1], temperature=5.0, top_k=2, max_frames=3, seed=1)
    torch.testing.assert_close(audio_of(out)[0], expected.clip(-1, 1), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "-o", "a.wav"), "text: expected text"),
        (("Two.", "-o", "a.wav", "--speaker", "eve"), "eve"),
        (("Two.", "-o", "a.mp3"), "ends in .wav"),
    ],
)
def test_what_cannot_be_said(tmp_path, monkeypatch, codec, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = call("speak", *arguments, "--model", codec.folder)
    assert done.code == 2 and message in done.err and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(tmp_path, codec):
    (tmp_path / "file").touch()
    done = call("speak", "Two.", "-o", tmp_path / "file" / "a.wav", "--model", codec.folder)
    assert done.code == 1 and "cannot make this folder" in done.err
