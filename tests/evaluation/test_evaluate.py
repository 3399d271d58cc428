"""The command line: rows, table and JSON, of a run and of checkpoints, and what it refuses."""

import json
import sys
import types

import pytest
import torch

pytest.importorskip("soundfile")
pytest.importorskip("soxr")
pytest.importorskip("safetensors")
pytest.importorskip("filelock")
pytest.importorskip("tqdm")
import numpy as np  # noqa: E402
from support.audio_files import write  # noqa: E402
from support.sounds import RATE, noise, voice  # noqa: E402

from muomni_fast.reference import RVQ, HiFiGANVocoder, MelConfig, evaluate  # noqa: E402
from muomni_fast.reference.checkpoint import save_model  # noqa: E402
from muomni_fast.reference.evaluation import measure as measuring  # noqa: E402
from muomni_fast.reference.evaluation import metrics, rows, subject  # noqa: E402
from muomni_fast.reference.evaluation.refused import Refused  # noqa: E402
from muomni_fast.reference.training.clips import Clip, find_clips  # noqa: E402
from muomni_fast.reference.training.data import HeldOut  # noqa: E402
from muomni_fast.reference.training.presets import preset  # noqa: E402
from muomni_fast.reference.training.run import SHIPPED_SPEECH
from muomni_fast.reference.training.run_folder import RunFolder  # noqa: E402

OWN = ["mel_l1", "mel_mse", "mcd", "log_f0_rmse", "voicing_error"]
IMPORTS = ("pystoi", "pesq", "speechmos", "pocketsphinx", "resemblyzer")
FIVE = ["original", "Griffin-Lim", "HiFi-GAN", "codec + Griffin-Lim", "codec + HiFi-GAN"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Six short clips of three voices with words, small models that nobody trained, and none of
    the packages."""
    monkeypatch.chdir(tmp_path)
    for module in IMPORTS:
        monkeypatch.setitem(sys.modules, module, None)
    lines = ["file,speaker,text"]
    for i in range(6):
        write(tmp_path / f"{i}.wav", voice(100.0 + 30 * i, 0.2 + 0.02 * i), RATE)
        lines.append(f"{i}.wav,{'abc'[i % 3]},{'' if i == 5 else 'one two'}")
    (tmp_path / "clips.csv").write_text("\n".join(lines) + "\n")
    mel = MelConfig()
    save_model(tmp_path / "rvq.json", "rvq", RVQ(codebook_size=16), mel, frames_per_code=5)
    vocoder = HiFiGANVocoder(upsample_initial_channel=16)
    save_model(tmp_path / "vocoder.json", "vocoder", vocoder, mel)
    return tmp_path


@pytest.fixture
def run_folder(here):
    """A run of `rvq` over those clips."""
    folder = RunFolder(here / "run")
    (here / "run" / "checkpoints").mkdir(parents=True)
    config = preset("smoke")
    data = str(here / "clips.csv")
    folder.write_config(config, data=data, split="clip", stage="rvq", number=1)
    save_model(folder.model("rvq"), "rvq", RVQ(**config.recipe("rvq").model), config.mel)
    return folder


def result(path="evaluation.json"):
    with open(path) as file:
        return json.load(file)


def test_checkpoints_make_five_rows(here, capsys):
    assert evaluate.main(["rvq.json", "vocoder.json", "--data", "clips.csv", "--limit", "2"]) == 0
    said, found = capsys.readouterr().out, result()
    assert list(found["rows"]) == FIVE
    assert found["clips"] == {"chosen": 2, "measured": 2}
    for row in FIVE:
        assert list(found["rows"][row]) == OWN and row in said
    original = found["rows"]["original"]
    assert all(original[name] == {"mean": 0, "clips": 2, "refused": {}} for name in OWN)
    assert found["rows"]["Griffin-Lim"]["mel_l1"]["mean"] > 0
    # From the true mel Griffin-Lim is near; what random weights make is not.
    l1 = {row: figures["mel_l1"]["mean"] for row, figures in found["rows"].items()}
    assert l1["Griffin-Lim"] < 0.5 * min(l1["HiFi-GAN"], l1["codec + Griffin-Lim"])
    assert set(found["left_out"]) == {"stoi", "pesq", "dnsmos", "word_errors", "speaker"}
    for heading in ("STOI", "PESQ", "DNSMOS", "words %", "speaker"):
        assert f"{heading}: left out: " in said
    assert '-e ".[pesq]"' in said and "written: evaluation.json" in said
    settings, versions = found["settings"], found["versions"]
    assert settings["codec"]["frames_per_code"] == 5
    assert settings["codec"]["bits_per_second"] == 62.5 / 5 * 2 * 4
    assert settings["models"] == {"rvq": "rvq.json", "vocoder": "vocoder.json"}
    assert settings["limit"] == 2 and settings["data"] == "clips.csv"
    assert settings["mel"]["n_mels"] == 128 and settings["sample_rate"] == RATE
    assert versions["torch"] == torch.__version__ and "soxr" in versions
    assert not list(here.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("models", "names"),
    [(["rvq.json"], [*FIVE[:2], FIVE[3]]), (["vocoder.json"], FIVE[:3])],
)
def test_rows_are_those_the_checkpoints_can_make(here, models, names):
    arguments = ["--data", "clips.csv", "--limit", "1", "--metrics", "mel_l1", "--out", "a.json"]
    assert evaluate.main([*models, *arguments]) == 0
    assert list(result("a.json")["rows"]) == names
    assert not (here / "evaluation.json").exists()


def test_a_vocoder_for_another_quantizer_is_warned_of(here, caplog):
    generator = HiFiGANVocoder(upsample_initial_channel=16)
    save_model("foreign.json", "vocoder", generator, MelConfig(), decoded_mels="0" * 64)
    for vocoder, warnings in (("vocoder.json", 0), ("foreign.json", 1)):
        arguments = "rvq.json", vocoder, "--data", "clips.csv", "--limit", "1", "--metrics"
        assert evaluate.main(arguments) == 0
        said = f"{vocoder}: was trained on mels of another quantizer"
        assert caplog.text.count(said) == warnings


def test_a_run_is_measured_on_what_it_held_out(run_folder, here, capsys):
    assert evaluate.main([str(run_folder.path), "--metrics", "mel_l1"]) == 0
    found = result(run_folder.path / "evaluation.json")
    assert list(found["rows"]) == [*FIVE[:2], FIVE[3]]
    assert found["clips"] == {"chosen": 3, "measured": 3}  # one of each of three voices
    assert found["settings"]["clips"] == "held out"
    assert "trained" in capsys.readouterr().out
    assert set(found["quantizer"]["trained"]) >= {"mel_mse", "mel_l1", "usage_1", "perplexity_2"}


def test_the_quantizer_alone_beside_faiss(run_folder, here, capsys):
    """What this command did before it measured sound: nothing else is computed."""
    pytest.importorskip("faiss")
    arguments = [str(run_folder.path), "--metrics", "--against", "faiss"]
    assert evaluate.main(arguments) == 1
    assert "faiss needs at least 128 to fit on, got" in capsys.readouterr().err
    for path in here.glob("*.wav"):
        write(path, noise(1.0, seed=int(path.stem)), RATE)
    assert evaluate.main(arguments) == 0
    said, found = capsys.readouterr().out, result(run_folder.path / "evaluation.json")
    assert found["rows"] == {} and list(found["quantizer"]) == ["trained", "faiss greedy"]
    assert "mel_mse" in said and "Griffin-Lim" not in said
    trained, faiss = (figures["mel_mse"] for figures in found["quantizer"].values())
    assert faiss < trained  # which are random weights


def test_the_quantizer_without_faiss(run_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert evaluate.main([str(run_folder.path), "--metrics", "--against", "faiss"]) == 1
    assert '-e ".[peers]"' in capsys.readouterr().err


def test_other_rates_are_judged_at_16_khz(here, capsys):
    """Clips and models at 22.05 kHz; the published generator's files."""
    rate, shape = 22050, HiFiGANVocoder(n_mels=80, upsample_initial_channel=16, weight_norm=True)
    (here / "other").mkdir()
    for i in range(2):
        write(here / "other" / f"{i}.wav", voice(150.0, 0.3)[: 4001 + i], rate)
    sound = {"sampling_rate": rate, "n_fft": 1024, "win_size": 1024, "fmin": 0, "fmax": 8000}
    config = {k: v for k, v in shape.config.items() if k not in ("n_mels", "weight_norm")}
    config |= sound | {"num_mels": 80, "hop_size": shape.hop_length}
    (here / "config.json").write_text(json.dumps(config))
    torch.save({"generator": shape.state_dict()}, here / "g")
    assert evaluate.main(["--hifigan", "config.json", "g", "--data", "other"]) == 0
    found = result()
    assert list(found["rows"]) == FIVE[:3] and found["settings"]["models"] == {"hifigan": "g"}
    assert found["rows"]["Griffin-Lim"]["mel_l1"]["clips"] == 2
    assert found["rows"]["Griffin-Lim"]["mel_l1"]["mean"] < 1
    arguments = ["rvq.json", "--hifigan", "config.json", "g", "--data", "other"]
    assert evaluate.main(arguments) == 1
    assert "sample_rate: 16000 != 22050" in capsys.readouterr().err


def test_words_count_where_there_are_some(here, monkeypatch, capsys):
    decoder = types.SimpleNamespace(
        start_utt=lambda: None,
        end_utt=lambda: None,
        process_raw=lambda samples, full_utt: None,
        hyp=lambda: types.SimpleNamespace(hypstr="one"),
    )
    package = types.SimpleNamespace(Decoder=lambda **options: decoder)
    monkeypatch.setitem(sys.modules, "pocketsphinx", package)
    monkeypatch.setattr(metrics.importlib.metadata, "version", lambda name: "1")
    arguments = ["vocoder.json", "--data", "clips.csv", "--metrics", "word_errors"]
    assert evaluate.main(arguments) == 0
    original = result()["rows"]["original"]["word_errors"]
    assert original == {"mean": 0.5, "clips": 5, "refused": {}}  # the sixth has no words
    assert "50.0" in capsys.readouterr().out
    assert evaluate.main([*arguments[:2], str(SHIPPED_SPEECH), *arguments[3:], "--limit", "1"]) == 0
    assert "words %: left out: the shipped speech is made by rule" in capsys.readouterr().out
    assert "word_errors" not in result()["rows"].get("original", {})
    (here / "clips.csv").write_text("file\n0.wav\n")
    assert evaluate.main(arguments) == 0
    assert "words %: left out: no clip has a text" in capsys.readouterr().out


def test_refused_clips_are_counted_and_left_out_of_the_mean(here, capsys):
    (here / "noise").mkdir()
    for i in range(2):
        write(here / "noise" / f"{i}.wav", [voice(200.0, 0.3), noise(0.3)][i], RATE)
    assert evaluate.main(["vocoder.json", "--data", "noise", "--metrics", *OWN]) == 0
    original = result()["rows"]["original"]
    assert original["log_f0_rmse"]["clips"] == 1 and original["log_f0_rmse"]["mean"] == 0
    assert original["log_f0_rmse"]["refused"] == {"no frame is voiced in both": 1}
    assert original["mel_l1"]["clips"] == 2
    assert "ln F0: original: 1 clips refused: no frame is voiced" in capsys.readouterr().out


def test_unusable_clips_are_left_out_and_said(here, capsys):
    write(here / "6.wav", np.zeros(4000), RATE)
    (here / "7.wav").write_bytes(b"no audio")
    table = (here / "clips.csv").read_text()
    (here / "clips.csv").write_text(table + "6.wav,a,\n7.wav,a,\n")
    assert evaluate.main(["vocoder.json", "--data", "clips.csv", "--metrics", "mel_l1"]) == 0
    assert result()["clips"] == {"chosen": 8, "measured": 6}
    assert "6 of 8 clips" in capsys.readouterr().out


def test_a_speaker_alone_and_a_spread_limit(here):
    arguments = ["vocoder.json", "--data", "clips.csv", "--metrics", "mel_l1", "--speakers", "b"]
    assert evaluate.main(arguments) == 0
    assert result()["clips"] == {"chosen": 2, "measured": 2}
    clips = find_clips("clips.csv")
    assert [clip.path.stem for clip in subject.spread(clips, 3)] == ["0", "2", "4"]
    assert subject.spread(clips, 9) == subject.spread(clips, None) == clips


BAD = {
    "no such run": (["nothing"], "nothing"),
    "a folder that is no run": (["data"], "holds no config.json"),
    "a run that has finished nothing": (["begun"], "holds no finished rvq or vocoder"),
    "two of a kind": (["rvq.json", "rvq.json"], "of the same kind, rvq"),
    "a run and a checkpoint": (["begun", "rvq.json"], "expected one run folder, or checkpoints"),
    "another kind": (["other.json"], "expected rvq or vocoder or talker, got a other"),
    "not a checkpoint": (["clips.csv"], "clips.csv"),
    "other mels": (["rvq.json", "low.json"], "sample_rate: 16000 != 8000"),
    "no data": (["rvq.json"], "--data: checkpoints without a run folder need some"),
    "data that is not there": (["rvq.json", "--data", "none.csv"], "none.csv: no such file"),
    "no clips": (["rvq.json", "--data", "data"], "no audio found"),
    "limit": (["rvq.json", "--data", "clips.csv", "--limit", "0"], "--limit: expected at least 1"),
    "speaker": (
        ["rvq.json", "--data", "clips.csv", "--speakers", "d"],
        "no clips of d; of a, b, c",
    ),
    "faiss": (["rvq.json", "--data", "clips.csv", "--against", "faiss"], "expected a run folder"),
    "two vocoders": (["vocoder.json", "--hifigan", "a", "b"], "vocoder.json is a vocoder already"),
    "no generator": (["--hifigan", "none.json", "b", "--data", "clips.csv"], "none.json"),
    "all silent": (["rvq.json", "--data", "silence"], "1 of 1 held-out clips are unusable"),
    "nowhere to write": (
        ["rvq.json", "--data", "clips.csv", "--metrics", "--out", "none/a.json"],
        "none/a.json: cannot write",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case, here, capsys):
    (here / "data").mkdir()
    (here / "silence").mkdir()
    write(here / "silence" / "a.wav", np.zeros(4000), RATE)
    begun = RunFolder(here / "begun")
    begun.path.mkdir()
    begun.write_config(preset("smoke"), data="x", split="clip", stage="rvq", number=1)
    low = MelConfig(sample_rate=8000, fmax=4000.0)
    save_model(here / "low.json", "vocoder", HiFiGANVocoder(upsample_initial_channel=16), low)
    save_model(here / "other.json", "other", RVQ(codebook_size=16), MelConfig())
    arguments, message = BAD[case]
    assert evaluate.main(arguments) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("error: ") and message in said.err
    assert not said.out and not (here / "evaluation.json").exists()


# Rows


def held(seconds=0.3, text=""):
    audio = torch.from_numpy(voice(150.0, seconds))
    return HeldOut(Clip("a.wav", "", text), audio, torch.zeros(128, 1))


def sample(made, follows_original=True):
    row = rows.Row("row", lambda clip: torch.as_tensor(made), follows_original)
    return measuring.sample_of(row, held(), voice(150.0, 0.3), RATE)


def test_rows_are_cut_to_the_original_and_to_full_scale():
    length = int(0.3 * RATE)
    longer = sample(3 * torch.ones(length + 2))
    assert longer.made.shape == longer.original.shape == (length,) and longer.made.max() == 1
    shorter = sample(torch.ones(length - 1))
    assert shorter.made.shape == shorter.original.shape == (length - 1,)
    with pytest.raises(ValueError, match="row: a.wav: expected 4,800 samples"):
        sample(torch.ones(length + 256))
    with pytest.raises(Refused, match="NaN or infinite"):
        sample(torch.full((length,), torch.nan))


def test_speech_from_text_is_not_compared(here, monkeypatch):
    """A row that does not follow the original has figures of its own only."""
    assert sample(torch.ones(9), follows_original=False).made.shape == (9,)
    row = rows.Row("spoken", lambda clip: torch.from_numpy(voice(99.0)), follows_original=False)
    clips = [
        HeldOut(Clip(here / "0.wav", "", "one two"), torch.zeros(1), torch.zeros(128, 1)),
    ]
    measures = {
        name: lambda sample: metrics.Figure(len(sample.made))
        for name in ("mel_l1", "dnsmos", "word_errors")
    }
    table = measuring.measure([row], clips, RATE, measures)["spoken"]
    assert table["mel_l1"].figures == [] and table["mel_l1"].mean() is None
    assert table["dnsmos"].mean() == table["word_errors"].mean() == RATE


def test_a_figure_that_is_not_finite_is_refused(here):
    clips = [HeldOut(Clip(here / "0.wav", ""), torch.zeros(1), torch.zeros(128, 1))]
    measures = {"mel_l1": lambda sample: metrics.Figure(float("nan"))}
    row = rows.Row("original", None)
    table = measuring.measure([row], clips, RATE, measures)
    assert table["original"]["mel_l1"].refused == {"no finite figure": 1}


def test_means_are_by_weight():
    column = measuring.Column([metrics.Figure(1.0, 1), metrics.Figure(0.0, 3)])
    assert column.mean() == 0.25
