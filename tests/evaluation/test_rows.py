"""Rows that need more than a codec's checkpoints: speech from text, and fewer codebooks."""

import json

import pytest
import torch

pytest.importorskip("soundfile")
pytest.importorskip("soxr")
pytest.importorskip("safetensors")
pytest.importorskip("filelock")
pytest.importorskip("tqdm")
from support.audio_files import write  # noqa: E402
from support.sounds import RATE, voice  # noqa: E402
from support.talkers import SENTENCES, learned, tiny  # noqa: E402

from muomni_fast.reference import RVQ, HiFiGANVocoder, MelConfig, evaluate  # noqa: E402
from muomni_fast.reference.checkpoint import save_model  # noqa: E402
from muomni_fast.reference.evaluation.measure import measure  # noqa: E402
from muomni_fast.reference.evaluation.metrics import Figure  # noqa: E402
from muomni_fast.reference.evaluation.refused import Refused  # noqa: E402
from muomni_fast.reference.evaluation.rows import rows_of  # noqa: E402
from muomni_fast.reference.evaluation.subject import open_subject  # noqa: E402
from muomni_fast.reference.training.clips import Clip  # noqa: E402
from muomni_fast.reference.training.data import HeldOut  # noqa: E402

MEL = MelConfig(n_mels=8)
STEP = 5 * 256  # samples of a code
TALKER = "Talker + Griffin-Lim"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A small codec, and a Talker that knows three sentences of codes by heart."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    rvq = RVQ(3, 16, 8, n_mels=40)
    save_model("rvq.json", "rvq", rvq, MEL, frames_per_code=5, pooling="stack")
    save_model("talker.json", "talker", learned()[0], MEL)
    return tmp_path


def held(path, text=None, speaker="", seconds=1.0):
    audio = torch.from_numpy(voice(150.0, seconds))
    write(path, audio.numpy(), RATE)
    return HeldOut(Clip(path, speaker, text), audio, torch.zeros(8, 63))


def talker_row(*more):
    subject = open_subject(["rvq.json", "talker.json", *more])
    return subject, {row.name: row for row in rows_of(subject)}[TALKER]


def test_the_talker_says_a_clips_words_in_its_voice(here):
    subject, row = talker_row()
    codec = subject.codecs["Griffin-Lim"]
    for text, speaker in zip(SENTENCES, ("ada", "ben", "nobody"), strict=True):
        known = None if speaker == "nobody" else speaker
        made = row.make(held(here / "a.wav", text, speaker))
        torch.testing.assert_close(made, codec.speak(text, known), rtol=0, atol=1e-6)


def test_another_voice_says_it_differently(here):
    save_model("talker.json", "talker", tiny(), MEL)
    _, row = talker_row()
    said = [row.make(held(here / "a.wav", "Two.", name)) for name in ("ada", "ben", "nobody")]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert said[i].shape != said[j].shape or not torch.equal(said[i], said[j])


def test_speech_without_an_end_is_cut(here):
    endless = tiny()
    torch.nn.init.zeros_(endless.heads[0].weight)  # of equal logits the first is taken, a code
    save_model("talker.json", "talker", endless, MEL)
    _, row = talker_row()
    assert len(row.make(held(here / "a.wav", "Two.", seconds=0.45))) == 12 * STEP  # twice 7,200
    clip = held(here / "a.wav", "x" * 600, seconds=0.1)
    with pytest.raises(Refused, match="512"):
        row.make(clip)


def test_a_talker_that_says_nothing_is_refused(here):
    subject, row = talker_row()
    talker = subject.codecs["Griffin-Lim"].talker

    def ending(module, arguments, logits):
        only = torch.full(logits.shape[:-1], talker.end)
        return torch.nn.functional.one_hot(only, logits.shape[-1]).float()

    talker.heads[0].register_forward_hook(ending)
    with pytest.raises(Refused, match="nothing was said"):
        row.make(held(here / "a.wav", "Two."))


def test_figures_of_the_talker(here):
    """Only its own; clips without words are counted, and a text beside a clip is one."""
    beside = held(here / "1-2-0003.wav")
    (here / "1-2.trans.txt").write_text("1-2-0003 TWO.\n")
    clips = [held(here / "a.wav", SENTENCES[0], "ada"), held(here / "b.wav"), beside]
    texts = []

    def words(sample):
        texts.append(sample.text)
        return Figure(len(sample.made))

    measures = {"mel_l1": words, "dnsmos": lambda s: Figure(len(s.made)), "word_errors": words}
    _, row = talker_row()
    found = measure([row], clips, RATE, measures)[TALKER]
    assert found["mel_l1"].as_json() == {"mean": None, "clips": 0, "refused": {}}
    assert found["dnsmos"].refused == {"no words to say": 1} and len(found["dnsmos"].figures) == 2
    assert not found["word_errors"].refused and texts == [SENTENCES[0], "TWO."]


def test_the_command_line_has_a_row_for_each(here, capsys):
    write(here / "a.wav", voice(150.0, 0.3), RATE)
    (here / "clips.csv").write_text("file,text\na.wav,Two.\n")
    save_model("vocoder.json", "vocoder", HiFiGANVocoder(8, upsample_initial_channel=16), MEL)
    models = ["rvq.json", "vocoder.json", "talker.json", "--data", "clips.csv"]
    arguments = ["--metrics", "mel_l1", "--codebooks", "1", "3", "1"]
    assert evaluate.main([*models, *arguments]) == 0
    with open("evaluation.json") as file:
        found = json.load(file)
    assert list(found["rows"]) == [
        "original",
        "Griffin-Lim",
        "HiFi-GAN",
        "codec, 1 codebooks + Griffin-Lim",
        "codec, 3 codebooks + Griffin-Lim",
        "codec + Griffin-Lim",
        "codec + HiFi-GAN",
        TALKER,
        "Talker + HiFi-GAN",
    ]
    l1 = {row: figures["mel_l1"]["mean"] for row, figures in found["rows"].items()}
    assert l1["codec, 3 codebooks + Griffin-Lim"] == l1["codec + Griffin-Lim"]
    assert l1["codec, 1 codebooks + Griffin-Lim"] != l1["codec + Griffin-Lim"]
    assert l1[TALKER] is None and found["settings"]["codebooks"] == [1, 3, 1]
    assert found["settings"]["models"]["talker"] == "talker.json"
    assert TALKER in capsys.readouterr().out


BAD = {
    "no such codebook": (["rvq.json", "--codebooks", "2", "4"], "--codebooks: expected an integer"),
    "none": (["rvq.json", "--codebooks", "0"], "from 1 to 3, got 0"),
    "no quantizer": (["vocoder.json", "--codebooks", "2"], "--codebooks: expected a quantizer"),
    "a Talker alone": (["talker.json"], "talker.json: expected its quantizer, rvq.json, with it"),
    "beside a vocoder": (["talker.json", "vocoder.json"], "expected its quantizer"),
    "another quantizer": (["rvq.json", "other.json"], "other.json: talker: expected the quantizer"),
    "another mel": (["rvq.json", "low.json"], "sample_rate: 16000 != 8000"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case, here, capsys):
    save_model("vocoder.json", "vocoder", HiFiGANVocoder(8, upsample_initial_channel=16), MEL)
    save_model("other.json", "talker", tiny(quantizer="0" * 64), MEL)
    low = MelConfig(sample_rate=8000, fmax=4000.0, n_mels=8)
    save_model("low.json", "talker", learned()[0], low)
    write(here / "a.wav", voice(150.0, 0.3), RATE)
    models, message = BAD[case]
    assert evaluate.main([*models, "--data", str(here), "--metrics", "mel_l1"]) == 1
    assert message in capsys.readouterr().err
    assert not (here / "evaluation.json").exists()
