"""What lies where a command would write: what is the same is skipped, all else stays."""

import numpy as np
import pytest

for _needed in ("typer", "soundfile", "soxr", "safetensors", "tqdm"):
    pytest.importorskip(_needed)
import soundfile  # noqa: E402
from support.command_line import RATE, call, small_codec, speech  # noqa: E402

from muomni_fast import read_codes  # noqa: E402
from muomni_fast.reference.audio.wav import wav_comment, wav_writer  # noqa: E402

FOREIGN = "is there already and was not made by muomni-fast; --overwrite replaces it"


@pytest.fixture
def model(tmp_path):
    small_codec(tmp_path / "model")
    return "--model", tmp_path / "model"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("encode",), "notes.muc"),
        (("encode", "--format", "npz"), "notes.npz"),
        (("encode", "--format", "parquet"), "notes.parquet"),
        (("resynth",), "precious.wav"),
        (("vocode",), "precious.wav"),
    ],
)
@pytest.mark.parametrize("kind", ["text", "recording", "zip"])
def test_what_is_somebodys_stays(tmp_path, model, command, name, kind):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (path,) = speech(tmp_path / "speech", a=500).values()
    target = tmp_path / "out" / name
    target.parent.mkdir()
    if kind == "text":
        target.write_text("Do not lose this.")
    elif kind == "recording":
        soundfile.write(target, np.zeros(300), RATE, format="WAV")
    else:
        np.savez(tmp_path / "other.npz", codes=np.zeros(3))
        (tmp_path / "other.npz").rename(target)
    before = target.read_bytes()
    done = call(*command, path, "-o", target, *model)
    assert done.code == 1 and f"{target}: {FOREIGN}" in done.err and target.read_bytes() == before
    assert done.out.startswith("0 written, 0 already there, 1 failed")
    done = call(*command, path, "-o", target, *model, "--overwrite", "--json")
    assert done.code == 0 and (done.json["done"], done.json["replaced"]) == (1, 1), done.err
    assert done.json["files"][0]["replaced"] and target.read_bytes() != before
    assert call(*command, path, "-o", target, *model).out.startswith("0 written, 1 already there")


def test_ours_of_other_options_stays(tmp_path, model):
    paths = speech(tmp_path / "speech", a=500, b=501)
    small_codec(tmp_path / "other")
    for command, ending in (("encode", ".muc"), ("resynth", ".wav")):
        target = tmp_path / f"a{ending}"
        assert call(command, paths["a"], "-o", target, *model).out.startswith("1 written, 0 alrea")
        before = target.read_bytes()
        other = "another model" if command == "encode" else "another vocoder"
        for given, options, message in (
            (paths["a"], (*model, "--n-codebooks", 1), "n_codebooks 2 instead of 1"),
            (paths["a"], ("--model", tmp_path / "other"), other),
            (paths["b"], model, "source"),
        ):
            done = call(command, given, "-o", target, *options)
            assert done.code == 1 and target.read_bytes() == before, message
            assert f"{target}: is there already, made with " in done.err, message
            assert message in done.err and "; --overwrite replaces it" in done.err, message
        done = call(command, paths["b"], "-o", target, *model, "--n-codebooks", 1, "--overwrite")
        assert done.code == 0 and done.out.startswith("1 written (1 replaced), 0 already there")
    assert read_codes(tmp_path / "a.muc")[1].n_codebooks == 1
    again = tmp_path / "again.wav"
    assert call("decode", tmp_path / "a.muc", "-o", again, *model).code == 0
    done = call("vocode", paths["b"], "-o", again, *model, "--dtype", "bfloat16")
    assert done.code == 1 and "dtype float32 instead of bfloat16" in done.err


def test_what_overwriting_leaves_alone(tmp_path, model):
    """One file that may not be replaced does not keep the others from being written; what is empty
    holds nothing to lose."""
    speech(tmp_path / "speech", a=500, b=600, c=700)
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.wav").write_text("mine")
    (out / "b.wav").touch()
    (out / "c.wav").mkdir()
    done = call("resynth", tmp_path / "speech", "-o", out, *model)
    assert done.code == 1 and done.out.startswith("1 written"), done.err
    assert "c.wav: expected a file to write, got a folder" in done.err
    assert (out / "a.wav").read_text() == "mine" and soundfile.info(out / "b.wav").frames == 600
    done = call("resynth", tmp_path / "speech", "-o", out, *model, "--overwrite")
    assert done.code == 1 and done.out.startswith("2 written (2 replaced)"), done.err
    assert (out / "c.wav").is_dir()


def test_a_damaged_one_of_ours_is_made_anew(tmp_path, model):
    (path,) = speech(tmp_path / "speech", a=500).values()
    for command, name in (("encode", "a.muc"), ("resynth", "a.wav")):
        target = tmp_path / name
        call(command, path, "-o", target, *model)
        whole = target.read_bytes()
        target.write_bytes(whole[:-2])
        assert call(command, path, "-o", target, *model).out.startswith("1 written (1 replaced)")
        assert target.read_bytes() == whole


def test_the_comment_of_a_wav_file(tmp_path):
    path = tmp_path / "a.wav"
    for comment in ("x", "some words", ""):
        with wav_writer(path, RATE, comment) as file:
            file.write(np.zeros(10, np.float32))
        assert wav_comment(path) == (comment, True)
        if comment:
            with soundfile.SoundFile(path) as file:
                assert file.comment == comment
    with wav_writer(path, RATE, "some words") as file:
        file.write(np.zeros(10, np.float32))
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert wav_comment(path) in (("", False), ("some words", False)), size
    path.write_bytes(whole + b"more")
    assert wav_comment(path) == ("some words", False)


@pytest.mark.parametrize(
    ("inputs", "out", "message"),
    [
        (("a.flac", "b.flac"), "one.muc", "-o one.muc: expected a folder for 2 files"),
        (("*.flac",), "one.muc", "-o one.muc: expected a folder for 2 files"),
        (("a.flac", "b.flac"), "one.wav", "-o one.wav: expected a folder for 2 files"),
        (("deep",), "one.muc", "-o one.muc: expected a folder for the files of deep"),
        (("a.flac", "deep/a.wav"), "out", "deep/a.wav: would be written to out/a.muc, as a.flac"),
        (("a.flac", "missing/a.wav"), "out", "a.wav: would be written to out/a.muc, as a.flac"),
    ],
)
def test_what_cannot_be_placed_is_found_before(tmp_path, monkeypatch, inputs, out, message):
    small_codec(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    speech(tmp_path, a=500, b=600)
    (tmp_path / "deep").mkdir()
    soundfile.write("deep/a.wav", np.zeros(300), RATE)
    done = call("encode", *inputs, "-o", out, "--model", "model")
    assert done.code == 2 and message in done.err and done.out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"a.flac", "b.flac", "deep", "model"}


def test_a_file_named_twice_is_written_once(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    speech(tmp_path / "speech", a=500, b=600)
    done = call("encode", "speech", "speech/a.flac", "-o", "out", *model)
    assert done.code == 0 and done.out.startswith("2 written"), done.err
    (tmp_path / "run.1").mkdir()  # a folder, whatever its name looks like
    done = call("encode", "speech/a.flac", "speech/b.flac", "-o", "run.2", *model)
    assert done.code == 0 and (tmp_path / "run.2" / "b.muc").is_file()
