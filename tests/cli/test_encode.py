"""`muomni-fast encode`: the codes of the whole file, whatever is cut, batched, broken or killed."""

import multiprocessing
import os
import signal
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

for _needed in ("typer", "soundfile", "soxr", "safetensors", "tqdm"):
    pytest.importorskip(_needed)
import soundfile  # noqa: E402
from support.command_line import (  # noqa: E402
    MEL,
    RATE,
    audio_of,
    call,
    names_in,
    small_codec,
    speech,
)

from muomni_fast import SpeechCodec, read_codes  # noqa: E402
from muomni_fast.cli import encoding, exports  # noqa: E402
from muomni_fast.reference.audio import files  # noqa: E402
from muomni_fast.reference.audio.files import read_audio  # noqa: E402
from muomni_fast.reference.rvq.digest import quantizer_digest  # noqa: E402


@pytest.fixture
def codec(tmp_path: Path) -> SpeechCodec:
    return small_codec(tmp_path / "model")


def require_codes(path: Path, codec: SpeechCodec, source: Path, books: int = 2) -> None:
    """A file holds the codes of the uncut audio, and says what they are."""
    codes, info = read_codes(path)
    audio = torch.from_numpy(read_audio(source, RATE)[0])[None]
    expected = codec.encode(audio, n_codebooks=books)[0].numpy()
    assert np.array_equal(codes, expected)
    assert (info.length, info.n_codebooks, info.mel) == (audio.shape[1], books, MEL)
    assert info.model == quantizer_digest(codec.rvq, codec.frames_per_code, codec.pooling)
    header = soundfile.info(source)
    assert (info.source_frames, info.source_rate) == (header.frames, header.samplerate)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("seconds", [30, 0.05])
@pytest.mark.parametrize(("per_code", "pooling"), [(1, "mean"), (5, "mean"), (5, "stack")])
def test_codes_are_the_uncut_files(tmp_path, monkeypatch, per_code, pooling, seconds, batch):
    codec = small_codec(tmp_path / "model", per_code, pooling)
    lengths = dict(one=1, hop=16, short=37, piece=400, more=401, long=9001)
    paths = speech(tmp_path / "speech", **lengths)
    stereo = np.random.default_rng(1).normal(0, 0.1, (7001, 2)).clip(-1, 1)
    paths["other"] = tmp_path / "speech" / "deep" / "other.wav"
    paths["other"].parent.mkdir()
    soundfile.write(paths["other"], stereo, 11025)  # at another rate
    monkeypatch.setattr(encoding, "BLOCK_SECONDS", seconds)
    out = tmp_path / "codes"
    done = call("encode", tmp_path / "speech", "-o", out, "--model", tmp_path / "model",
                "--batch", batch, "--device", "cpu")  # fmt: skip
    assert done.code == 0, done.err
    assert names_in(out) == {"deep/other.muc", *(f"{name}.muc" for name in lengths)}
    for path in paths.values():
        place = path.relative_to(tmp_path / "speech").with_suffix(".muc")
        require_codes(out / place, codec, path)


def test_one_file_and_fewer_codebooks(tmp_path, codec):
    (path,) = speech(tmp_path / "speech", a=500).values()
    target = tmp_path / "new" / "b.muc"
    options = "--model", tmp_path / "model" / "rvq.json", "--n-codebooks", 1
    assert call("encode", path, "-o", target, *options).code == 0
    require_codes(target, codec, path, books=1)
    pattern = str(tmp_path / "spe*" / "*.flac")
    assert call("encode", pattern, "-o", tmp_path / "more", *options).code == 0
    assert names_in(tmp_path / "more") == {"a.muc"}


def test_a_beam(tmp_path, codec):
    """And that files do not say which."""
    (path,) = speech(tmp_path / "speech", a=5000).values()
    command = "encode", path, "-o", tmp_path / "a.muc", "--model", tmp_path / "model", "--beam", 4
    assert call(*command).err == ""
    found, expected = read_codes(tmp_path / "a.muc")[0], codec.encode(audio_of(path), beam=4)
    assert np.array_equal(found, expected[0].numpy())
    assert not torch.equal(expected, codec.encode(audio_of(path)))
    done = call(*command)
    assert done.code == 0 and "do not say with which --beam" in done.err


def test_a_rerun_does_nothing(tmp_path, codec):
    paths = speech(tmp_path / "speech", a=500, b=900, c=40)
    out = tmp_path / "codes"
    command = "encode", tmp_path / "speech", "-o", out, "--json", "--model"
    first = call(*command, tmp_path / "model").json
    assert (first["done"], first["skipped"], first["failed"]) == (3, 0, 0)
    assert first["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert first["seconds_of_audio"] == pytest.approx(1440 / RATE)

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in out.iterdir()}

    before = times()
    again = call(*command, tmp_path / "model").json
    assert (again["done"], again["skipped"]) == (0, 3) and times() == before
    # What is damaged is made anew; what was made of another length, where that is asked for.
    (out / "a.muc").write_bytes((out / "a.muc").read_bytes()[:-1])
    speech(tmp_path / "speech", b=901)
    again = call(*command, tmp_path / "model").json
    assert (again["done"], again["skipped"], again["failed"]) == (1, 1, 1)
    again = call("encode", paths["b"], *command[2:], tmp_path / "model", "--overwrite").json
    assert (again["done"], again["replaced"]) == (1, 1)
    assert {name for name in before if times()[name] != before[name]} == {"a.muc", "b.muc"}
    require_codes(out / "b.muc", codec, paths["b"])
    # And all of another model.
    other = small_codec(tmp_path / "other")
    command = (*command[:4], "--overwrite", *command[4:])
    assert call(*command, tmp_path / "other").json["done"] == 3
    require_codes(out / "c.muc", other, paths["c"])
    assert call(*command, tmp_path / "other", "--n-codebooks", 1).json["done"] == 3


def test_broken_files_among_good_ones(tmp_path, codec, monkeypatch):
    """One of them breaks in the middle, while blocks of others wait to be encoded."""
    monkeypatch.setattr(encoding, "BLOCK_SECONDS", 0.02)
    monkeypatch.setattr(files, "BLOCK_SAMPLES", 300)
    paths = speech(tmp_path / "speech", **{f"good{i}": 300 + 100 * i for i in range(5)})
    (tmp_path / "speech" / "folder.wav").mkdir()
    broken = [tmp_path / "speech" / f"good{i % 5}-bad{i}.wav" for i in range(9)]
    content = paths["good4"].read_bytes()
    for i, path in enumerate(broken):
        path.write_bytes([b"", b"RIFF", content[:60], os.urandom(500)][i % 4])
    nan = np.full(3000, np.nan, np.float32)
    nan[:2000] = 0.1
    soundfile.write(broken[8], nan, RATE, "FLOAT")
    missing = tmp_path / "missing.wav"
    out = tmp_path / "codes"
    done = call("encode", tmp_path / "speech", missing, "-o", out, "--model", tmp_path / "model",
                "--batch", 64)  # fmt: skip
    assert done.code == 1 and "5 written, 0 already there, 10 failed" in done.out
    for path in (*broken, missing):
        assert len([line for line in done.err.splitlines() if str(path) in line]) == 1
    assert names_in(out) == {f"{name}.muc" for name in paths}
    for name, path in paths.items():
        require_codes(out / f"{name}.muc", codec, path)


def test_no_file_is_written_twice_or_over_its_source(tmp_path, codec):
    paths = speech(tmp_path / "speech", a=500, b=500)
    soundfile.write(tmp_path / "speech" / "a.wav", np.zeros(300), RATE)
    done = call("encode", tmp_path / "speech", "-o", tmp_path / "codes", "--model",
                tmp_path / "model")  # fmt: skip
    assert done.code == 2 and "a.wav: would be written to" in done.err
    assert not (tmp_path / "codes").exists()
    before = paths["b"].read_bytes()
    wav = tmp_path / "speech" / "a.wav"
    done = call("resynth", wav, "-o", tmp_path / "speech", "--model", tmp_path / "model")
    assert done.code == 2 and "which is read" in done.err and paths["b"].read_bytes() == before


def test_an_interrupt_leaves_whole_files(tmp_path, codec, monkeypatch):
    paths = speech(tmp_path / "speech", a=500, b=900, c=40)
    command = "encode", tmp_path / "speech", "-o", tmp_path / "codes", "--model", tmp_path / "model"
    with monkeypatch.context() as patch:
        calls, rename = [], os.replace

        def interrupted(*args):
            calls.append(args)
            if len(calls) == 2:
                raise KeyboardInterrupt
            rename(*args)

        patch.setattr(os, "replace", interrupted)
        done = call(*command)
    assert done.code == 130 and "stopped" in done.err and "Traceback" not in done.err
    assert names_in(tmp_path / "codes") == {"a.muc"}
    assert "2 written, 1 already there" in call(*command).out
    for name, path in paths.items():
        require_codes(tmp_path / "codes" / f"{name}.muc", codec, path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork of this process")
def test_killed_and_run_again(tmp_path, codec):
    paths = speech(tmp_path / "speech", **{f"f{i}": 300 + 10 * i for i in range(6)})
    out = tmp_path / "codes"
    command = "encode", tmp_path / "speech", "-o", out, "--model", tmp_path / "model"

    def dies(at: int) -> None:
        real, count = os.fsync, 0

        def fsync(descriptor: int) -> None:
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            real(descriptor)

        mock.patch.object(os, "fsync", fsync).start()
        call(*command)

    torch.set_num_threads(1)  # a fork has no other threads
    for at in (1, 4, 3):  # in the middle of a file, and between two
        process = multiprocessing.get_context("fork").Process(target=dies, args=(at,))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        for name in names_in(out):
            if not name.startswith("."):
                require_codes(out / name, codec, paths[Path(name).stem])
    assert call(*command).code == 0
    assert names_in(out) == {f"{name}.muc" for name in paths}  # and nothing besides
    for name, path in paths.items():
        require_codes(out / f"{name}.muc", codec, path)


def test_codes_to_train_on(tmp_path, codec):
    (path,) = speech(tmp_path / "speech", a=500).values()
    command = "encode", path, "-o", tmp_path / "codes", "--model", tmp_path / "model", "--format"
    assert call(*command, "npz").code == 0
    with np.load(tmp_path / "codes" / "a.npz") as arrays:
        assert arrays["codes"].dtype == np.uint16
        assert np.array_equal(arrays["codes"], codec.encode(audio_of(path))[0].numpy())
        assert arrays["length"] == 500 and arrays["mel_hop_length"] == 16
        assert str(arrays["pooling"]) == "mean"
    assert "0 written, 1 already there" in call(*command, "npz").out
    for content, code in ((b"", 0), (b"PK\3\4" + os.urandom(300), 1)):
        (tmp_path / "codes" / "a.npz").write_bytes(content)
        assert call(*command, "npz").code == code


def test_codes_as_parquet(tmp_path, codec):
    parquet = pytest.importorskip("pyarrow.parquet")
    (path,) = speech(tmp_path / "speech", a=500).values()
    command = "encode", path, "-o", tmp_path / "a.parquet", "--model", tmp_path / "model"
    assert call(*command, "--format", "parquet").code == 0
    table = parquet.read_table(tmp_path / "a.parquet")
    (row,) = table.to_pylist()
    assert str(table.schema.field("codes").type) == "list<element: list<element: uint16>>"
    assert row["codes"] == codec.encode(audio_of(path))[0].tolist() and row["length"] == 500
    assert "0 written, 1 already there" in call(*command, "--format", "parquet").out
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "not made by muomni-fast" in call(*command, "--format", "parquet").err


def test_parquet_without_pyarrow_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "has_pyarrow", lambda: False)
    done = call("encode", "a.wav", "-o", tmp_path, "--format", "parquet")
    assert done.code == 2 and "--format parquet needs pyarrow" in done.err
