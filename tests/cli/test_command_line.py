"""How commands are called: what is said, by which exit code, and what is handed on."""

import importlib.util
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import muomni_fast
from muomni_fast import __main__ as entry

for _needed in ("typer", "soundfile", "soxr", "safetensors", "tqdm"):
    pytest.importorskip(_needed)
import soundfile  # noqa: E402
from support.command_line import MEL, RATE, audio_of, call, small_codec, speech  # noqa: E402

from muomni_fast.cli import app, options  # noqa: E402
from muomni_fast.reference import evaluate, train  # noqa: E402

ROOT = Path(__file__).parents[2]
SMALL = dict(
    upsample_rates=[4, 4],
    upsample_kernel_sizes=[8, 8],
    upsample_initial_channel=8,
    resblock="2",
    resblock_kernel_sizes=[3],
    resblock_dilation_sizes=[[1, 2]],
)
HIFIGAN = dict(num_mels=4, hop_size=16, sampling_rate=RATE, n_fft=64, win_size=64)
HIFIGAN |= dict(fmin=0, fmax=4000)
VOCODER_ONLY = "vocoder.json: holds a vocoder only; encode needs rvq.json, or the run's folder"
COMMANDS = "encode", "decode", "resynth", "vocode", "speak", "info", "doctor", "train", "evaluate"


def test_help_names_every_command_and_the_exit_codes():
    said = call("--help")
    assert said.code == 0
    assert tuple(re.findall(r"^  (\w+) ", said.out.split("Commands:")[1], re.M)) == COMMANDS
    for code in ("0 all", "1 a file failed", "2 the command", "130 it was"):
        assert code in re.sub(r"\s+", " ", said.out)
    for command in COMMANDS[:7]:
        said = call(command, "--help")
        assert said.code == 0 and not re.findall("<[a-z]", said.out), command
        examples = re.findall(rf"\n  muomni-fast {command} .*(?:\n  \S.*)*", said.out)
        if command not in ("speak", "doctor"):  # what comes with the library has no Talker
            assert "--model" not in examples[0], command
            assert "runs/first" in examples[1] or "hifigan/" in examples[1], command
    assert call().code in (0, 2)
    assert call("--version").out == f"{muomni_fast.__version__}\n"


def test_every_example_in_the_help_could_be_called(monkeypatch):
    seen = []
    monkeypatch.setattr(app, "pairs", lambda *args: seen.append(args) or exit_here())

    def exit_here():
        raise app.UsageError("here")

    for command in ("encode", "decode", "resynth", "vocode"):
        for example in re.findall(r"^  muomni-fast (.*)$", call(command, "--help").out, re.M):
            assert call(*example.split()).err == "error: here\n", example
    assert len(seen) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("encode", "a.wav"), "--out"),
        (("encode", "-o", "out"), "IN"),
        (("encode", "a.wav", "-o", "a.mp3", "--model", "m"), "ends in .muc"),
        (("decode", "a.muc", "-o", "a.mp3", "--model", "m"), "ends in .wav"),
        (("encode", "{tmp}/nothing", "-o", "out", "--model", "m"), "no audio files in"),
        (("decode", "{tmp}/*.muc", "-o", "out", "--model", "m"), "no files of codes in"),
        (("encode", "a.wav", "b.wav", "-o", "{tmp}/file", "--model", "m"), "got a file"),
        (("encode", "a.wav", "-o", "out", "--model", "{tmp}/none"), "none: "),
        (("encode", "a", "-o", "out", "--model", "{tmp}/model", "--n-codebooks", "3"), "1 to 2"),
        (("encode", "a.wav", "-o", "out", "--model", "{tmp}/model/vocoder.json"), VOCODER_ONLY),
        (("decode", "a.muc", "-o", "out", "--model", "{tmp}/model/vocoder.json"), "; decode needs"),
        (("vocode", "a.wav", "-o", "out", "--model", "{tmp}/model/rvq.json"), "a quantizer only; "),
        (("encode", "a.wav", "-o", "out", "--model", "muomni"), "comes with the library (muomni"),
        (("encode", "a.wav", "-o", "out", "--beam", "0"), "--beam"),
        (("encode", "a.wav", "-o", "out", "--model", "m", "--device", "abacus"), "--device abacus"),
        (("encode", "a.wav", "-o", "out", "--format", "zip"), "muc, npz or parquet, got zip"),
        (("decode", "a.muc", "-o", "out", "--model", "{tmp}/model", "--dtype", "int8"), "--dtype"),
        (("encode", "a.wav", "-o", "out", "--batch", "0"), "--batch"),
        (("speak", "Hi.", "-o", "a", "--model", "{tmp}/model"), "--resume RUN --stage talker"),
        (("speak", "Hello.", "-o", "a.wav"), "muomni-62 has none"),
        (("sing",), "sing"),
    ],
)  # fmt: skip
def test_what_cannot_begin(tmp_path, arguments, message):
    small_codec(tmp_path / "model")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "file").touch()
    done = call(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.code == 2 and done.out == "" and message in done.err
    assert "Traceback" not in done.err and not (tmp_path / "out").exists()


def test_info(tmp_path):
    codec = small_codec(tmp_path / "model")
    (path,) = speech(tmp_path / "speech", a=500).values()
    call("encode", path, "-o", tmp_path / "a.muc", "--model", tmp_path / "model")
    paths = path, tmp_path / "a.muc", tmp_path / "model", tmp_path / "model" / "vocoder.json"
    audio, codes, model, vocoder = json.loads(call("info", *paths, "--json").out)
    assert (audio["kind"], audio["frames"], audio["sample_rate"]) == ("audio", 500, RATE)
    assert codes["codes"] == [11, 2] and codes["model"] == model["model"]
    assert codes["bits_per_second"] == pytest.approx(2 * torch.tensor(11.0).log2() * 8000 / 48)
    assert codes["bytes"] == (tmp_path / "a.muc").stat().st_size
    assert model["kind"] == "codec" and model["mel"]["hop_length"] == MEL.hop_length
    assert model["quantizer"]["n_codebooks"] == codec.rvq.n_codebooks
    assert vocoder["parameters"] == model["vocoder"]["parameters"] > 100
    said = call("info", tmp_path / "a.muc", tmp_path / "none.muc")
    assert said.code == 1 and "\nmel:\n  sample_rate: 8000\n" in said.out
    assert "error: " in said.out and "No such file" in said.out


def test_one_of_several_parts(tmp_path):
    """A vocoder with its running average; its config stands for the folder."""
    first, second = (muomni_fast.HiFiGANVocoder(4, **SMALL) for _ in range(2))
    state = {f"model.{name}": value for name, value in first.state_dict().items()}
    torch.save(state | {f"ema.{n}": v for n, v in second.state_dict().items()}, tmp_path / "a.pt")
    (tmp_path / "config.json").write_text(json.dumps(SMALL | HIFIGAN))
    (path,) = speech(tmp_path / "speech", a=500).values()
    model = "--model", tmp_path / "config.json"
    command = "vocode", path, *model, "-o"
    done = call(*command, tmp_path / "a.wav")
    assert done.code == 2 and "name its `part`: 'ema.' or 'model.'" in done.err
    mel = muomni_fast.log_mel(audio_of(path), MEL)
    for part, vocoder in (("model.", first), ("ema.", second)):
        out = tmp_path / f"{part}wav"
        assert call(*command, out, "--part", part).code == 0
        with torch.no_grad():
            expected = vocoder(mel)[:, :500].clip(-1, 1)
        torch.testing.assert_close(audio_of(out), expected, rtol=0, atol=1e-4)
    found = call("info", tmp_path, "--part", "ema.", "--json").json[0]
    assert found["kind"] == "HiFiGANVocoder"
    done = call("info", path, tmp_path / "speech", "--part", "ema.")
    assert done.code == 1 and done.out.count("error: ") == 2


def test_info_of_codes_to_train_on_and_of_folders(tmp_path):
    small_codec(tmp_path / "model")
    speech(tmp_path / "speech", a=500, b=800)
    model = "--model", tmp_path / "model"
    folder = tmp_path / "codes"
    kinds = ("muc", "npz", "parquet") if importlib.util.find_spec("pyarrow") else ("muc", "npz")
    for kind in kinds:
        given = tmp_path / "speech" / "a.flac"
        assert call("encode", given, "-o", folder, "--format", kind, *model).code == 0
    found = json.loads(call("info", *(folder / f"a.{kind}" for kind in kinds), "--json").out)
    muc = {name: value for name, value in found[0].items() if name not in ("path", "kind", "bytes")}
    for file in found[1:]:
        assert file["kind"] == "codes to train on" and muc.items() <= file.items()
    (folder / "deep").mkdir()
    (folder / "deep" / "bad.npz").write_bytes(b"PK")
    np.savez(folder / "deep" / "other.npz", codes=np.zeros(3))
    done = call("info", folder)
    assert done.code == 1 and done.out.count("\n") == len(kinds) + 3
    assert f"{folder}: {len(kinds) + 2} files, {len(kinds) * 500 / RATE:.1f} s" in done.out
    assert f"{folder / 'a.npz'}: 0.06 s, 2 x 11 codes, 1153 bits/s\n" in done.out
    assert done.out.count("not an .npz that `encode` wrote") == 2
    done = call("info", tmp_path / "speech", "--json")
    assert done.code == 0 and done.json[0]["count"] == 2
    assert done.json[0]["files"][1]["seconds"] == 800 / RATE
    assert "\n" + str(tmp_path / "speech" / "b.flac") in call("info", tmp_path / "speech").out
    # A folder with a model is the model, also where that is damaged.
    speech(tmp_path / "model" / "audio", a=500)
    assert call("info", tmp_path / "model", "--json").json[0]["kind"] == "codec"
    (tmp_path / "model" / "rvq.json").write_text("{")
    assert call("info", tmp_path / "model").code == 1
    (tmp_path / "empty").mkdir()
    assert "expected rvq.json" in call("info", tmp_path / "empty").out
    assert call("info", "muomni-62", "--json").json[0]["quantizer"]["n_codebooks"] == 8


def test_codes_to_train_on_are_not_decoded(tmp_path):
    small_codec(tmp_path / "model")
    (path,) = speech(tmp_path / "speech", a=500).values()
    model = "--model", tmp_path / "model"
    call("encode", path, "-o", tmp_path / "a.npz", "--format", "npz", *model)
    done = call("decode", tmp_path / "a.npz", "-o", tmp_path / "a.wav", *model)
    message = "a.npz: an .npz is for training; encode with --format muc to decode"
    assert done.code == 1 and message in done.err
    (tmp_path / "a.muc").write_bytes(path.read_bytes())
    done = call("decode", tmp_path / "a.muc", "-o", tmp_path / "a.wav", *model)
    assert "a.muc: not a file of codes (.muc) but a FLAC file" in done.err


def test_errors_as_json(tmp_path):
    for arguments in (
        ("encode", "a.wav", "-o", "out", "--model", tmp_path / "none"),
        ("decode", "a.muc", "-o", "out", "--no-such-option"),
        ("encode", "a.wav"),
        ("sing",),
        ("speak", "Hi.", "-o", "a.wav"),
        ("encode", "a.wav", "-o", "out", "--batch", "0"),
    ):
        done = call(*arguments, "--json")
        assert done.code == 2 and [*done.json] == ["error"], arguments
        assert done.json["error"].split("\n")[0][:30] in re.sub(r"\s*[|│]\s*", " ", done.err)
    assert call("info", "muomni-63", "--json").json[0]["error"].startswith("muomni-63: no file")
    assert json.loads(call("doctor", "--json").out) == json.loads(call("doctor").out)


def test_a_model_without_a_vocoder_is_named(tmp_path):
    small_codec(tmp_path / "plain", vocoder=False)
    (path,) = speech(tmp_path / "speech", a=500).values()
    assert call("encode", path, "-o", tmp_path / "a.muc", "--model", tmp_path / "plain").err == ""
    for command, given in (("decode", tmp_path / "a.muc"), ("resynth", path), ("vocode", path)):
        out, model = tmp_path / f"{command}.wav", tmp_path / "plain"
        done = call(command, given, "-o", out, "--model", model, "--json")
        note = f"{model} has no vocoder: Griffin-Lim is used"
        assert done.json["notes"] == [note] and done.err == f"note: {note}\n", command
    done = call("vocode", path, "-o", tmp_path / "b.wav")
    assert done.err == "note: muomni-62 has no vocoder: Griffin-Lim is used\n"


@pytest.mark.parametrize(("name", "module"), [("train", train), ("evaluate", evaluate)])
def test_arguments_are_handed_on(monkeypatch, name, module):
    seen = []
    monkeypatch.setattr(module, "main", lambda *given: seen.append(given) or 7)
    assert call(name, "--preset", "quick", "--help", "RUN", "-x").code == 7
    assert seen == [(["--preset", "quick", "--help", "RUN", "-x"], f"muomni-fast {name}")]


def test_trainings_own_help_and_errors(tmp_path):
    usage = call("train", "--help").out
    assert usage.startswith("usage: muomni-fast train ") and "--preset" in usage
    assert call("train", "--preset", "none").code == 2
    done = call("evaluate", tmp_path / "none")
    assert done.code == 1 and done.err.startswith("error: ")


def test_without_the_extra_there_is_doctor_alone(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "soxr" else find(name)
    )
    assert entry.main(["doctor"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(muomni_fast.doctor()))
    for wrong, message in (
        (["encode", "a", "-o", "b"], 'need soxr: pip install -c constraints.txt -e ".[cli]"'),
        (["doctor", "x"], "got x"),
    ):
        with pytest.raises(SystemExit, match="2"):
            entry.main(wrong)
        assert message in capsys.readouterr().err
    monkeypatch.undo()
    assert entry.main(["doctor"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(muomni_fast.doctor()))


@pytest.mark.long
def test_importing_the_library_imports_no_command():
    optional = "typer", "soundfile", "soxr", "rich", "pydantic"
    code = f"import sys, muomni_fast; print([m for m in {optional} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_is_for_terminals(tmp_path, monkeypatch):
    small_codec(tmp_path / "model")
    (path,) = speech(tmp_path / "speech", a=8000).values()
    command = [
        "encode",
        str(path),
        "-o",
        str(tmp_path / "a.muc"),
        "--model",
        str(tmp_path / "model"),
    ]
    assert call(*command).err == ""
    (tmp_path / "a.muc").unlink()
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert app.run(command) == 0
    assert "100%" in stderr.getvalue() and "1/1 s of audio" in stderr.getvalue()
    assert re.search(r"\d+\.\d x real time", stderr.getvalue())


def test_what_a_command_lacks_is_named(monkeypatch):
    for name in ("train", "evaluate"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, f"muomni_fast.reference.{name}", None)
            done = call(name)
        assert done.code == options.USAGE and '-e ".[train]" in the repository' in done.err


def test_too_little_memory(monkeypatch, tmp_path):
    def exhausted(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    small_codec(tmp_path / "model")
    (path,) = speech(tmp_path / "speech", a=500).values()
    monkeypatch.setattr(app.Encoder, "run", exhausted)
    command = "encode", path, "-o", tmp_path / "out", "--model", tmp_path / "model"
    done = call(*command)
    assert done.code == options.FAILED and "smaller --batch" in done.err
    monkeypatch.setattr(app, "MOST_SIZE", 10)
    done = call(*command)
    assert done.code == options.USAGE and "at most 10 codes per codebook" in done.err


def test_the_model_that_comes_with_the_library(tmp_path):
    """A clip comes back at its length, at about its level, and at 3.5 kbit/s."""
    clip = ROOT / "reference" / "speech" / "wavs" / "ada-01.flac"
    done = call("encode", clip, "-o", tmp_path / "a.muc", "--n-codebooks", "8")
    assert done.code == 0, done.err
    original, rate = soundfile.read(clip)
    seconds = len(original) / rate
    assert (tmp_path / "a.muc").stat().st_size <= 1.02 * 3500 / 8 * seconds + 256
    assert call("decode", tmp_path / "a.muc", "-o", tmp_path / "a.wav").code == 0
    heard, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == 16000 and abs(len(heard) - seconds * rate) <= 1
    level = 10 * np.log10(np.square(heard).mean() / np.square(original).mean())
    assert abs(level) < 6  # of a synthetic voice, which it was not trained on
    codec = muomni_fast.load(muomni_fast.SHIPPED_MODEL)
    assert codec.rvq.n_codebooks == 8 and codec.config == muomni_fast.MelConfig()
    assert "CC BY 4.0" in (muomni_fast.SHIPPED_MODEL / "MODEL_CARD.md").read_text()
