"""Checkpoints survive crashes, full disks and bit rot, and refuse what they should."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.checkpoints import weights_of

import muomni_fast
from muomni_fast import HiFiGANVocoder, MelConfig, NeuralVocoder, reference
from muomni_fast.reference import atomic, checkpoint, reading
from muomni_fast.reference.errors import CheckpointError

pytest.importorskip("safetensors")


def test_round_trip(tmp_path):
    rvq, mel = reference.RVQ(n_codebooks=3, bias=True), MelConfig(n_mels=128, hop_length=200)
    checkpoint.save_model(tmp_path / "rvq.json", "rvq", rvq, mel, step=7)
    loaded = checkpoint.load_model(tmp_path / "rvq.json", "rvq")
    assert loaded.mel == mel and loaded.extra == {"step": 7} and loaded.config == rvq.config
    again = muomni_fast.RVQ(**loaded.config)
    checkpoint.load_state(again, loaded.state, "test")
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in rvq.state_dict().items())


def test_config_holds_the_weights_digest(saved):
    document = json.loads(saved.read_text())
    assert document["sha256"] == hashlib.sha256(weights_of(saved).read_bytes()).hexdigest()
    assert document["mel"]["hop_length"] == 256


def test_saving_again_replaces_the_old_weights(saved):
    old = weights_of(saved)
    checkpoint.save_model(saved, "rvq", reference.RVQ(), MelConfig())
    assert not old.exists() and weights_of(saved).exists()
    assert len(list(saved.parent.iterdir())) == 2


def test_bit_rot_is_found(saved):
    weights = weights_of(saved)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256"):
        checkpoint.load_model(saved)


def test_damage_of_any_kind_is_one_error(saved):
    weights, document = weights_of(saved), saved.read_text()
    for content in ("", "{", "[]", "{}", document.replace('"version": 2', '"version": 9')):
        saved.write_text(content)
        with pytest.raises(CheckpointError, match=r"rvq\.json"):
            checkpoint.load_model(saved)
    saved.write_text(document)
    weights.unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        checkpoint.load_model(saved)
    with pytest.raises(CheckpointError, match="nothing.json"):
        checkpoint.load_model(saved.with_name("nothing.json"))
    with pytest.raises(CheckpointError, match="expected a vocoder, got a rvq"):
        saved.write_text(document)
        checkpoint.save_model(saved, "rvq", reference.RVQ(), MelConfig())
        checkpoint.load_model(saved, "vocoder")


def test_a_crash_at_any_write_keeps_the_previous_checkpoint(saved, monkeypatch):
    """Fail at every file system call of a save in turn; the old checkpoint must load every time."""
    before = checkpoint.load_model(saved).state
    for call in ("fsync", "replace"):
        for fail_at in range(4):
            count = 0
            real = getattr(os, call)

            def failing(*args, real=real, fail_at=fail_at):
                nonlocal count
                count += 1
                if count == fail_at + 1:
                    raise OSError(28, "No space left on device")
                return real(*args)

            new = reference.RVQ()
            with monkeypatch.context() as patch:
                patch.setattr(atomic.os, call, failing)
                try:
                    checkpoint.save_model(saved, "rvq", new, MelConfig())
                except CheckpointError as error:
                    assert "No space left" in str(error) and "bytes" in str(error)
            after = checkpoint.load_model(saved).state
            same_as_old = all(torch.equal(after[k], before[k]) for k in before)
            same_as_new = all(torch.equal(after[k], v) for k, v in new.state_dict().items())
            assert same_as_old or same_as_new
            before = after
    assert not list(saved.parent.glob(".*.tmp"))


def test_content_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    order = []
    for call in ("fsync", "replace"):
        real = getattr(os, call)
        monkeypatch.setattr(
            atomic.os, call, lambda *args, c=call, r=real: (order.append(c), r(*args))
        )
    atomic.write_atomically(tmp_path / "a", b"content")
    assert order == ["fsync", "replace", "fsync"]  # the file, its name, the folder


@pytest.mark.long
def test_a_full_disk_names_path_and_bytes_and_keeps_the_old_file(tmp_path):
    """A real failing write: the kernel refuses files beyond 64 kB in a process of its own."""
    target = tmp_path / "state.pt"
    target.write_bytes(b"previous")
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "from muomni_fast.reference.checkpoint import write_atomically\n"
        "write_atomically(sys.argv[1], bytes(200_000))\n"
    )
    run = subprocess.run([sys.executable, "-c", code, target], capture_output=True, text=True)
    assert run.returncode == 1
    assert f"CheckpointError: {target}: cannot write 200,000 bytes: File too large" in run.stderr
    assert target.read_bytes() == b"previous"
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


class Payload:
    def __reduce__(self):
        return (os.system, ("touch /tmp/should-not-exist",))


def test_pickles_that_run_code_are_refused(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"generator": Payload()}, path)
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        reading.load_foreign(path)
    content = pickle.dumps({"generator": Payload()})
    path.write_bytes(hashlib.sha256(content).hexdigest().encode() + content)
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        checkpoint.load_training_state(path)
    assert not Path("/tmp/should-not-exist").exists()


def test_truncated_and_empty_states_are_one_error(tmp_path):
    path = tmp_path / "state.pt"
    checkpoint.save_training_state(path, {"step": 3, "weights": torch.randn(1000)})
    whole = path.read_bytes()
    assert checkpoint.load_training_state(path)["step"] == 3
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    sizes = (0, 1, 100, len(whole) // 2, len(whole) - 1)
    for content in (*(whole[:size] for size in sizes), bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"state\.pt: damaged"):
            checkpoint.load_training_state(path)


def test_keys_that_do_not_fit_are_all_listed():
    rvq = reference.RVQ()
    state = dict(rvq.state_dict())
    del state["proj_in.weight"]
    state["codebooks.0.weight"] = torch.zeros(3, 3)
    state["extra.thing"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load_state(rvq, state, "file.json")
    for part in ("file.json", "proj_in.weight", r"[3, 3]", "extra.thing"):
        assert part in str(error.value)
    half = {name: value.half() for name, value in rvq.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"proj_in\.weight: torch\.float16 -> torch\.float32"):
        checkpoint.load_state(rvq, half, "file.json")


# NeuralVocoder: a checkpoint, Griffin-Lim, or an error; never random weights


@pytest.mark.parametrize("kind", [NeuralVocoder, reference.NeuralVocoder])
def test_vocoder_from_a_checkpoint(kind, tmp_path):
    generator = HiFiGANVocoder(upsample_initial_channel=16, weight_norm=True)
    checkpoint.save_model(tmp_path / "vocoder.json", "vocoder", generator, MelConfig())
    vocoder = kind(tmp_path / "vocoder.json")
    mel = torch.randn(1, 128, 5)
    torch.testing.assert_close(vocoder(mel), generator(mel).detach(), rtol=0, atol=1e-6)
    assert vocoder.mel_to_audio(mel[0].numpy()).shape == (1280,)
    with pytest.raises(ValueError, match="fmax: 7000.0 != 8000.0"):
        kind(tmp_path / "vocoder.json", MelConfig(fmax=7000.0))


def test_no_checkpoint_is_griffin_lim_and_says_so(caplog):
    vocoder = NeuralVocoder()
    assert "NeuralVocoder: no vocoder given: using Griffin-Lim" in caplog.text
    assert isinstance(vocoder.vocoder, muomni_fast.GriffinLimVocoder)


def test_a_checkpoint_that_does_not_load_is_an_error(tmp_path, saved):
    with pytest.raises(CheckpointError, match="missing.json"):
        NeuralVocoder(tmp_path / "missing.json")
    with pytest.raises(CheckpointError, match="expected a vocoder, got a rvq"):
        NeuralVocoder(saved)
    wrong_hop = MelConfig(hop_length=128)
    generator = HiFiGANVocoder(upsample_initial_channel=16)
    checkpoint.save_model(tmp_path / "vocoder.json", "vocoder", generator, wrong_hop)
    with pytest.raises(CheckpointError, match=r"vocoder\.json.*256.*128"):
        NeuralVocoder(tmp_path / "vocoder.json")


def test_other_files_are_refused_in_a_line(tmp_path, saved):
    """Not with their content in the message."""
    pickled = tmp_path / "generator.pt"
    torch.save({"generator": {"weight": torch.randn(1000)}}, pickled)
    (tmp_path / "config.json").write_text('{"num_mels": 80}')
    for path in (pickled, weights_of(saved), tmp_path / "config.json"):
        with pytest.raises(CheckpointError, match="expected the .json of a checkpoint") as error:
            NeuralVocoder(path)
        assert path.name in str(error.value) and len(str(error.value)) < 300
    with pytest.raises(CheckpointError, match="more than plain data") as error:
        reading.load_foreign(tmp_path / "config.json")
    assert "weights_only" not in str(error.value)


# SpeechCodec


@pytest.mark.parametrize("extra", [{}, {"pooling": "mean"}, {"pooling": "stack"}])
@pytest.mark.parametrize("lib", [muomni_fast, reference], ids=["fast", "reference"])
def test_codec_from_checkpoints(lib, extra, tmp_path, caplog):
    pooling = extra.get("pooling", "mean")  # what was saved without it is of means
    rvq = reference.RVQ(n_mels=640 if pooling == "stack" else 128)
    generator = reference.HiFiGANVocoder(upsample_initial_channel=16)
    paths = tmp_path / "rvq.json", tmp_path / "vocoder.json"
    checkpoint.save_model(paths[0], "rvq", rvq, MelConfig(), frames_per_code=5, **extra)
    checkpoint.save_model(paths[1], "vocoder", generator, MelConfig())
    codec = lib.SpeechCodec.from_checkpoints(*paths)
    assert type(codec.rvq) is lib.RVQ and type(codec.vocoder.vocoder) is lib.HiFiGANVocoder
    assert not codec.training and (codec.frames_per_code, codec.pooling) == (5, pooling)
    expected = reference.SpeechCodec(rvq, generator, MelConfig(), 5, pooling)
    audio = torch.randn(2, 4000)
    codes = codec.encode(audio)
    assert torch.equal(codes, expected.encode(audio))
    torch.testing.assert_close(codec.decode(codes), expected.decode(codes), rtol=0, atol=1e-6)
    if lib is muomni_fast:
        assert codec.prepare() is codec and codec.vocoder.vocoder._prepared is not None
        assert torch.equal(codec.encode(audio), codes)
        torch.testing.assert_close(codec.decode(codes), expected.decode(codes), rtol=0, atol=1e-6)
        lib.SpeechCodec.from_checkpoints(paths[0]).prepare()  # Griffin-Lim has nothing to prepare
    assert lib.SpeechCodec.from_checkpoints(paths[0]).decode(codes).shape == (2, 5120)
    assert f"{paths[0]}: no vocoder given: using Griffin-Lim" in caplog.text
    with pytest.raises(CheckpointError, match="expected a rvq, got a vocoder"):
        lib.SpeechCodec.from_checkpoints(paths[1], paths[0])
    checkpoint.save_model(paths[1], "vocoder", generator, MelConfig(fmax=7000.0))
    with pytest.raises(CheckpointError, match=r"vocoder\.json.*fmax: 8000.0 != 7000.0"):
        lib.SpeechCodec.from_checkpoints(*paths)


def test_codec_refuses_what_does_not_fit():
    codec = muomni_fast.SpeechCodec(
        muomni_fast.RVQ(), HiFiGANVocoder(upsample_initial_channel=16), MelConfig()
    )
    for shape in ((4000,), (1, 2, 4000)):
        with pytest.raises(ValueError, match=r"audio: expected \(B, L\) or \(B, 1, L\), got \("):
            codec.encode(torch.zeros(shape))
    with pytest.raises(TypeError, match="audio: expected a torch.Tensor, got numpy.ndarray"):
        codec.encode(torch.zeros(1, 4000).numpy())
    codes = codec.encode(torch.zeros(1, 4000))
    with pytest.raises(ValueError, match=r"codes: expected \(B, S, k\), got \(16, 2\)"):
        codec.decode(codes[0])
    with pytest.raises(ValueError, match="length: expected an integer of at least 0, got -5"):
        codec.decode(codes, length=-5)
