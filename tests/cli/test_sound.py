"""`muomni-fast decode`, `resynth` and `vocode`: the sound that the codec makes of the whole, at its
length, in one piece or many."""

import io
from pathlib import Path

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

from muomni_fast import GriffinLimVocoder, log_mel, read_codes, write_codes  # noqa: E402
from muomni_fast.cli import encoding, rendering  # noqa: E402
from muomni_fast.cli.rendering import FADE_FRAMES, faded  # noqa: E402
from muomni_fast.cli.sources import mels_of_codes  # noqa: E402
from muomni_fast.reference.codec import decode_mel  # noqa: E402

LENGTHS = dict(one=1, hop=16, short=37, odd=401, long=3003)
STEP = 2 / 32768  # what 16 bits round, and a little


def require_sound(path: Path, expected: torch.Tensor, length: int, atol: float = STEP) -> None:
    """A WAV file holds the first `length` samples of (1, L) audio."""
    found = audio_of(path)[0]
    assert len(found) == length
    torch.testing.assert_close(found, expected[0, :length].clip(-1, 1), rtol=0, atol=atol)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("seconds", [20, 0.05])
@pytest.mark.parametrize(("per_code", "pooling"), [(1, "mean"), (3, "mean"), (3, "stack")])
def test_decoding_and_resynthesis(tmp_path, monkeypatch, per_code, pooling, seconds, batch):
    codec = small_codec(tmp_path / "model", per_code, pooling)
    paths = speech(tmp_path / "speech", **LENGTHS)
    monkeypatch.setattr(encoding, "BLOCK_SECONDS", seconds)
    monkeypatch.setattr(rendering, "STREAM_SECONDS", seconds)
    options = "--model", tmp_path / "model", "--batch", batch, "--device", "cpu"
    assert call("encode", tmp_path / "speech", "-o", tmp_path / "codes", *options).code == 0
    for command, given in (("decode", "codes"), ("resynth", "speech")):
        out = tmp_path / command
        done = call(command, tmp_path / given, "-o", out, *options)
        assert done.code == 0 and done.out.startswith("5 written"), done.err
        assert names_in(out) == {f"{name}.wav" for name in LENGTHS}
        for name, path in paths.items():
            expected = codec.decode(codec.encode(audio_of(path)))
            require_sound(out / f"{name}.wav", expected, LENGTHS[name])


def test_fewer_codebooks(tmp_path):
    codec = small_codec(tmp_path / "model")
    (path,) = speech(tmp_path / "speech", a=700).values()
    options = "--model", tmp_path / "model", "--n-codebooks", 1
    assert call("encode", path, "-o", tmp_path / "a.muc", *options[:2]).code == 0
    expected = codec.decode(codec.encode(audio_of(path))[..., :1])
    for command, given in (("decode", tmp_path / "a.muc"), ("resynth", path)):
        assert call(command, given, "-o", tmp_path / f"{command}.wav", *options).code == 0
        require_sound(tmp_path / f"{command}.wav", expected, 700)
    assert call("encode", path, "-o", tmp_path / "b.muc", *options).code == 0
    done = call("decode", tmp_path / "b.muc", "-o", tmp_path / "b.wav", *options[:2],
                "--n-codebooks", 2)  # fmt: skip
    assert done.code == 1 and "expected at most the 1 in the file" in done.err


def test_a_rerun_does_nothing(tmp_path):
    small_codec(tmp_path / "model")
    speech(tmp_path / "speech", a=500, b=900)
    out = tmp_path / "out"
    command = "resynth", tmp_path / "speech", "-o", out, "--json", "--model"
    assert call(*command, tmp_path / "model").json["done"] == 2
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    again = call(*command, tmp_path / "model").json
    assert (again["done"], again["skipped"]) == (0, 2)
    assert before == {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    audio, _ = soundfile.read(tmp_path / "speech" / "a.flac")
    soundfile.write(tmp_path / "speech" / "a.flac", audio / 2, RATE)  # as long, but another
    (out / "b.wav").write_bytes((out / "b.wav").read_bytes()[:-60])
    again = call(*command, tmp_path / "model").json
    assert (again["done"], again["replaced"], again["failed"]) == (1, 1, 1)
    assert "made with another source" in again["files"][0]["error"]
    command = (*command[:4], "--overwrite", *command[4:])
    assert call(*command, tmp_path / "model", "--n-codebooks", 1).json["done"] == 2
    small_codec(tmp_path / "other")
    assert call(*command, tmp_path / "other", "--n-codebooks", 1).json["done"] == 2


def test_griffin_lim_says_that_it_cannot_stream(tmp_path, monkeypatch):
    codec = small_codec(tmp_path / "model", vocoder=False)
    paths = speech(tmp_path / "speech", short=500, long=4000)
    options = "--model", tmp_path / "model", "--json"
    whole = call("resynth", tmp_path / "speech", "-o", tmp_path / "whole", *options)
    assert whole.code == 0 and "cannot stream" not in whole.err
    for name, path in paths.items():
        expected = codec.decode(codec.encode(audio_of(path)))
        length = soundfile.info(path).frames
        # Prepared codewords are rounded otherwise, and iterations carry that on.
        require_sound(tmp_path / "whole" / f"{name}.wav", expected, length, atol=2e-3)
        assert expected.abs().max() > 0.02
    monkeypatch.setattr(rendering, "GRIFFIN_LIM_SECONDS", 0.1)
    done = call("resynth", tmp_path / "speech", "-o", tmp_path / "pieces", *options)
    assert "long.flac: Griffin-Lim cannot stream" in done.json["notes"][-1]
    assert soundfile.info(tmp_path / "pieces" / "long.wav").frames == 4000
    same = [(tmp_path / place / "short.wav").read_bytes() for place in ("whole", "pieces")]
    assert same[0] == same[1]


def test_pieces_are_faded_into_each_other():
    """Of a vocoder whose frames do not depend on each other nothing is changed; what is made anew
    for each piece goes over in a straight line."""
    mel = torch.randn(1, 4, 200)
    each = lambda mel: mel.mean(1).repeat_interleave(16, 1)
    for size in (5, 16, 60, 200):
        pieces = [*faded(each, mel.split(size, 2), 16)]
        torch.testing.assert_close(torch.cat(pieces, 1), each(mel))
    count = iter(range(9))
    numbered = lambda mel: torch.full((1, mel.shape[2] * 16), float(next(count)))
    audio = torch.cat([*faded(numbered, mel.split(100, 2), 16)], 1)[0]
    start = (100 - FADE_FRAMES) * 16
    assert (audio[:start] == 0).all() and (audio[1600:] == 1).all()
    steps = audio[start - 1 : 1601].diff()
    assert (steps >= 0).all() and steps.max() < 1.1 / (FADE_FRAMES * 16)


@pytest.mark.parametrize(("per_code", "pooling"), [(1, "mean"), (5, "mean"), (5, "stack")])
def test_mels_of_codes_in_pieces(tmp_path, per_code, pooling):
    codec = small_codec(tmp_path, per_code, pooling)
    codes = torch.randint(0, 11, (41, 2))
    whole = decode_mel(codec.rvq, codes, per_code, pooling)
    for seconds in (0.001, 0.03, 0.1, 9):
        pieces = [*mels_of_codes(codec, codes, seconds)]
        torch.testing.assert_close(torch.cat(pieces, 1), whole)
    assert len([*mels_of_codes(codec, codes, 0.001)]) == 41


@pytest.mark.parametrize("seconds", [20, 0.05])
def test_vocoding(tmp_path, monkeypatch, seconds):
    """Audio of any rate and arrays, by the vocoder of a codec or one alone."""
    codec = small_codec(tmp_path / "model")
    monkeypatch.setattr(rendering, "STREAM_SECONDS", seconds)
    paths = speech(tmp_path / "in", a=901)
    mel = log_mel(audio_of(paths["a"]), MEL)
    np.save(tmp_path / "in" / "b.npy", mel[0].numpy())
    np.save(tmp_path / "in" / "c.npy", mel[0].double().numpy().T.copy().T)
    for i, model in enumerate(("model", "model/vocoder.json")):
        out = tmp_path / f"out{i}"
        done = call("vocode", tmp_path / "in", "-o", out, "--model", tmp_path / model)
        assert done.code == 0, done.err
        expected = codec.vocoder(mel)
        require_sound(out / "a.wav", expected, 901)
        for name in "bc":
            require_sound(out / f"{name}.wav", expected, expected.shape[1])


def test_half_precision_is_the_vocoders(tmp_path):
    codec = small_codec(tmp_path / "model")
    (path,) = speech(tmp_path / "speech", a=700).values()
    out, options = tmp_path / "a.wav", ("--model", tmp_path / "model", "--dtype", "bfloat16")
    assert call("resynth", path, "-o", out, *options).code == 0
    expected = codec.decode(codec.encode(audio_of(path)))[:, :700]
    found = audio_of(out)
    assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()
    small_codec(tmp_path / "plain", vocoder=False)
    done = call("resynth", path, "-o", out, "--model", tmp_path / "plain", *options[2:])
    assert done.code == 2 and "Griffin-Lim runs in float32" in done.err


def test_broken_files_are_listed(tmp_path):
    codec = small_codec(tmp_path / "model")
    small_codec(tmp_path / "other")
    speech(tmp_path / "speech", a=500, b=600, c=700)
    codes, options = tmp_path / "codes", ("--model", tmp_path / "model", "--batch", 2)
    call("encode", tmp_path / "speech", "-o", codes, *options)
    array, info = read_codes(codes / "b.muc")
    (codes / "b.muc").write_bytes(b"nothing")
    call("encode", tmp_path / "speech" / "a.flac", "-o", codes / "d.muc", "--model",
         tmp_path / "other")  # fmt: skip
    done = call("decode", codes, "-o", tmp_path / "out", *options)
    assert done.code == 1 and done.out.startswith("2 written, 0 already there, 2 failed")
    assert "b.muc: not a file of codes (.muc) but something else" in done.err
    assert "d.muc: was encoded by another model: its model is" in done.err
    assert names_in(tmp_path / "out") == {"a.wav", "c.wav"}
    write_codes(codes / "b.muc", array, info)
    assert call("decode", codes, "-o", tmp_path / "out", *options).out.startswith(
        "1 written, 2 already"
    )
    assert codec.frames_per_code == 3
    mels = tmp_path / "mels"
    mels.mkdir()
    good = np.zeros((4, 20), np.float32)
    bad = {
        "shape": good.T,
        "empty": good[:, :0],
        "kind": good.astype(int),
        "nan": good + np.nan,
        "object": np.array([[object()]]),
    }
    for name, array in {**bad, "good": good}.items():
        np.save(mels / f"{name}.npy", array)
    (mels / "text.npy").write_text("text")
    (mels / "zip.npy").write_bytes(io.BytesIO(b"PK\3\4").getvalue())
    done = call("vocode", mels, "-o", tmp_path / "sound", *options)
    assert done.code == 1 and done.out.startswith("1 written, 0 already there, 7 failed"), done.err
    for name in (*bad, "text", "zip"):
        assert f"{name}.npy: " in done.err
    assert names_in(tmp_path / "sound") == {"good.wav"}


def test_what_is_too_loud_is_said(tmp_path, monkeypatch):
    small_codec(tmp_path / "model", vocoder=False)
    (path,) = speech(tmp_path / "speech", a=700).values()
    monkeypatch.setattr(GriffinLimVocoder, "forward", lambda self, mel, lengths=None: (
        torch.full((len(mel), mel.shape[2] * 16), 1.5)))  # fmt: skip
    done = call("resynth", path, "-o", tmp_path / "a.wav", "--model", tmp_path / "model")
    assert done.code == 0 and "peak 1.50 is beyond full scale, clipped" in done.err
