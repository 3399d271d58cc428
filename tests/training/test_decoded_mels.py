"""Training of the vocoder on mels that went through a finished quantizer."""

import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from support.training import assert_same, main

import muomni_fast
from muomni_fast import MelConfig, log_mel, reference
from muomni_fast.reference.audio.mel import pool_frames

soundfile = pytest.importorskip("soundfile")
for module in ("safetensors", "soxr", "matplotlib", "tqdm"):
    pytest.importorskip(module)

from muomni_fast.reference.checkpoint import load_model, load_training_state, save_model  # noqa: E402
from muomni_fast.reference.errors import CheckpointError  # noqa: E402
from muomni_fast.reference.rvq.digest import quantizer_digest  # noqa: E402
from muomni_fast.reference.training import (  # noqa: E402
    mel_codec,
    report,
    rvq_stage,
    trainer,
    vocoder_stage,
)
from muomni_fast.reference.training.clip_table import describe_clips, write_clips  # noqa: E402
from muomni_fast.reference.training.clips import find_clips  # noqa: E402
from muomni_fast.reference.training.config import TrainConfig  # noqa: E402
from muomni_fast.reference.training.data import Corpus, read_held_out  # noqa: E402
from muomni_fast.reference.training.options import Options, make_config  # noqa: E402
from muomni_fast.reference.training.presets import preset, presets  # noqa: E402
from muomni_fast.reference.training.run import resume_run  # noqa: E402
from muomni_fast.reference.training.run_folder import (  # noqa: E402
    RunFolder,
    finished_checkpoint,
)
from muomni_fast.reference.training.vocoder_stage import VocoderStage  # noqa: E402

CPU = torch.device("cpu")
MEL = MelConfig()
POOLED = [(1, "mean"), (5, "mean"), (5, "stack")]


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of half a second, of noise that swells."""
    folder = tmp_path_factory.mktemp("speech")
    for i in range(6):
        noise = np.random.default_rng(i).standard_normal(8000 + 500 * i)
        soundfile.write(folder / f"{i}.wav", 0.1 * noise * np.linspace(0.1, 1, len(noise)), 16000)
    return folder


def quantizer_of(
    path: Path, frames_per_code: int = 1, pooling: str = "mean", mel: MelConfig = MEL
) -> Path:
    """A checkpoint of a quantizer whose codes are frames of noise, so that all are in use."""
    torch.manual_seed(frames_per_code)
    noise = log_mel(0.1 * torch.randn(100_000) * torch.linspace(0.1, 1, 100_000), mel)
    rows = pool_frames(noise.T, frames_per_code, pooling)
    rvq = reference.RVQ(n_codebooks=2, codebook_size=16, codebook_dim=8, n_mels=rows.shape[1])
    with torch.no_grad():
        drawn = rvq.proj_in(rows)[torch.randperm(len(rows))[:48]].chunk(3)
        rvq.codebooks[0].weight.copy_(drawn[0])
        rvq.codebooks[1].weight.copy_(0.3 * (drawn[1] - drawn[2]))
    save_model(path, "rvq", rvq, mel, frames_per_code=frames_per_code, pooling=pooling)
    return path


def config_of(checkpoint: Path, *pooled: Any) -> TrainConfig:
    names = dict(zip(("frames_per_code", "pooling"), pooled, strict=True))
    options = Options(preset="smoke", stage="vocoder", decoded_mels=str(checkpoint), **names)
    return make_config(options)


def decoded(checkpoint: Path, mel: torch.Tensor, *pooled: Any) -> torch.Tensor:
    """What the codes of a whole log-mel (n_mels, T) decode to."""
    saved = load_model(checkpoint, "rvq")
    rvq = reference.RVQ(**saved.config)
    rvq.load_state_dict(saved.state)
    with torch.no_grad():
        codes = reference.codec.encode_mel(rvq, mel, *pooled)
        return reference.codec.decode_mel(rvq, codes, *pooled)[:, : mel.shape[1]]


# What the generator sees


@pytest.mark.parametrize("pooled", POOLED)
def test_crops_are_cut_from_whole_clips_that_were_decoded(speech, tmp_path, pooled):
    checkpoint = quantizer_of(tmp_path / "rvq.json", *pooled)
    config = config_of(checkpoint, *pooled)
    clips = find_clips(speech)
    data = VocoderStage(config, reference, CPU).dataset(Corpus(clips))
    hop, frames = MEL.hop_length, config.segment_samples // MEL.hop_length
    starts = set()
    for step in range(4):
        batch = data[step]
        for position, audio, mel in zip(
            batch["positions"], batch["audio"], batch["mel"], strict=True
        ):
            whole = torch.from_numpy(soundfile.read(clips[data.clip_of(position)].path)[0]).float()
            whole = torch.nn.functional.pad(whole, (0, -len(whole) % hop))
            windows = whole.unfold(0, config.segment_samples, hop)
            (start,) = (windows == audio).all(1).nonzero()[:, 0].tolist()
            true = log_mel(whole, MEL)
            expected = decoded(checkpoint, true, *pooled)[:, start : start + frames]
            torch.testing.assert_close(mel, expected)
            assert (mel - true[:, start : start + frames]).abs().mean() > 0.1  # not the mel itself
            assert len(mel.unique(dim=1)[0]) > frames / pooled[0] / 2  # of many codes
            starts.add(start % 5)
    assert len(starts) > 1  # also where no code begins


def test_the_generator_is_given_them_and_learns_the_recording(speech, tmp_path):
    stage = VocoderStage(config_of(quantizer_of(tmp_path / "rvq.json"), 1, "mean"), reference, CPU)
    stage.begin()
    (batch,) = stage.split(stage.dataset(Corpus(find_clips(speech)))[0], 1)
    before, seen = quantizer_digest(stage.through.rvq, 1), []
    stage.product.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    for _ in range(2):
        results: dict[str, Any] = {}
        for name in stage.passes(0):
            optimiser = stage.optimisers[name]
            optimiser.zero_grad()
            results[name] = stage.loss(name, batch, results)
            results[name].loss.backward()
            optimiser.step()
    assert seen and all(torch.equal(mel, batch["mel"]) for mel in seen)
    assert quantizer_digest(stage.through.rvq, 1) == stage.through.digest == before
    assert not any(p.requires_grad or p.grad is not None for p in stage.through.rvq.parameters())
    assert "rvq" not in stage.models

    class Parrot(torch.nn.Module):
        def forward(self, mel: torch.Tensor) -> torch.Tensor:
            return batch["audio"]

    stage.models["vocoder"] = Parrot()
    assert stage.loss("generator", batch).figures["mel_l1"] == 0


def test_figures_are_of_decoded_mels_to_the_recordings(speech, tmp_path):
    checkpoint = quantizer_of(tmp_path / "rvq.json")
    config = config_of(checkpoint, 1, "mean")
    stage = VocoderStage(config, reference, CPU)
    clips = read_held_out(find_clips(speech)[:2], MEL)
    given = [decoded(checkpoint, clip.mel, 1, "mean") for clip in clips]
    mels = torch.cat([clip.mel for clip in clips], 1)

    def l1(vocoder: Any) -> float:
        with torch.no_grad():
            sounds = [log_mel(vocoder(mel[None])[0], MEL) for mel in given]
        return float((torch.cat(sounds, 1) - mels).abs().mean())

    figures = stage.comparisons(None, clips, {})
    griffin_lim = reference.GriffinLimVocoder(MEL)
    assert stage.validate(clips)["mel_l1"] == pytest.approx(l1(stage.product), rel=1e-3)
    assert figures["griffin_lim"]["mel_l1"] == pytest.approx(l1(griffin_lim), rel=1e-3)
    error = (torch.cat(given, 1) - mels).abs().mean()
    assert figures["decoded"]["mel_l1"] == pytest.approx(float(error), rel=1e-3)

    ways = VocoderStage.heard(config, {"vocoder": stage.product.eval()})
    assert ways.keys() == {"mel-hifigan", "codec-hifigan", "decoded-griffin-lim"}
    with torch.no_grad():
        sound = ways["codec-hifigan"](clips[0])
        torch.testing.assert_close(sound, stage.product(given[0][None])[0])


def test_held_out_clips_are_decoded_once(speech, tmp_path):
    stage = VocoderStage(config_of(quantizer_of(tmp_path / "rvq.json"), 1, "mean"), reference, CPU)
    clips = read_held_out(find_clips(speech)[:3], MEL)
    with mock.patch.object(mel_codec, "encode_mel", wraps=mel_codec.encode_mel) as encoded:
        first = stage.validate(clips)
        assert stage.validate(clips) == first
        stage.comparisons(None, clips, {})
    assert encoded.call_count == len(clips)


def test_a_backend_that_can_prepare_its_quantizer_does(speech, tmp_path):
    config = config_of(quantizer_of(tmp_path / "rvq.json"), 1, "mean")
    through = VocoderStage(config, muomni_fast, CPU).through
    assert through.rvq._prepared is not None
    clip, *_ = read_held_out(find_clips(speech)[:1], MEL)
    expected = VocoderStage(config, reference, CPU).through(clip.mel)
    torch.testing.assert_close(through(clip.mel), expected)


@pytest.mark.filterwarnings("ignore:.*beyond full scale")  # noise is of no interest here
def test_a_report_reads_the_quantizer_once_and_keeps_every_sound(speech, tmp_path):
    checkpoint = quantizer_of(tmp_path / "rvq.json")
    config = config_of(checkpoint, 1, "mean")
    saved = load_model(checkpoint, "rvq")
    rvq = reference.RVQ(**saved.config)
    rvq.load_state_dict(saved.state)
    products = {
        "rvq": rvq.eval(),  # of the same run, perhaps another one
        "vocoder": VocoderStage(config, reference, CPU).product.eval(),
    }
    clips = read_held_out(find_clips(speech)[:2], MEL)
    folder = RunFolder(tmp_path / "run")
    read = mock.patch.object(vocoder_stage, "read_mel_codec", wraps=vocoder_stage.read_mel_codec)
    with (
        read as reads,
        mock.patch.multiple(report, plot_mels=mock.DEFAULT, plot_losses=mock.DEFAULT),
    ):
        report.write_report(folder, config, products, clips, clips[:1])
    assert reads.call_count == 1
    ways = ["original", "mel-griffin-lim", "mel-hifigan", "codec-hifigan"]
    ways += ["codec-griffin-lim", "decoded-griffin-lim"]
    names = {path.name for path in (folder.path / "audio").iterdir()}
    stems = [f"1-{clips[0].clip.path.stem}", f"2-{clips[1].clip.path.stem}"]
    stems.append(f"training-{stems[0]}")
    assert names == {f"{stem}-{way}.wav" for stem in stems for way in ways}


@pytest.mark.parametrize("trained, better", [(0.3, "the trained vocoder"), (0.5, "Griffin-Lim")])
def test_the_report_says_which_is_better(trained, better):
    figures = {"random": 2.0, "trained": trained, "griffin_lim": 0.4, "decoded": 0.35}
    lines = VocoderStage.report({name: {"mel_l1": value} for name, value in figures.items()})
    assert lines[3].split() == ["Griffin-Lim", "0.400"]
    assert lines[-1] == f"nearer to the recording's log-mel: {better}"


def test_the_small_preset_is_small():
    config = presets()["muomni-62-small"]
    with torch.device("meta"):
        vocoder = reference.HiFiGANVocoder(**config.recipe("vocoder").model)
    assert sum(p.numel() for p in vocoder.parameters()) * 4 <= 7_000_000
    whole = presets()["muomni-62"]
    assert config.recipe("rvq") == whole.recipe("rvq") and config.mel == whole.mel
    assert config.recipe("talker") == whole.recipe("talker")


# Runs


@pytest.fixture(scope="module")
def quantizer(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has finished its quantizer."""
    folder = tmp_path_factory.mktemp("decoded") / "quantizer"
    with mock.patch.object(rvq_stage, "START_FRAMES", 500):  # its quality is of no matter here
        options = ["--preset", "smoke", "--stage", "rvq", "--steps", "2"]
        assert main(*options, "--data", speech, "--out", folder) == 0
    return folder


def begin(speech: Path, quantizer: Path, out: Path, *more: Any) -> int:
    options = ["--preset", "smoke", "--stage", "vocoder", "--steps", "6", "--data", speech]
    return main(*options, "--decoded-mels", quantizer, "--out", out, *more)


@pytest.fixture(scope="module")
def whole(speech: Path, quantizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoded") / "whole"
    assert begin(speech, quantizer, folder) == 0
    return folder


@pytest.fixture
def stopped(speech: Path, quantizer: Path, tmp_path: Path) -> Iterator[Path]:
    """A run that was stopped after its checkpoint at step 4, on a quantizer beside it."""
    other = shutil.copytree(quantizer, tmp_path / "quantizer")
    real = trainer.Trainer._train_step

    def step(self: trainer.Trainer, batch: Any) -> Any:
        if self.step == 5:
            raise KeyboardInterrupt
        return real(self, batch)

    with mock.patch.object(trainer.Trainer, "_train_step", step):
        assert begin(speech, other, tmp_path / "run") == 130
    yield tmp_path / "run"


def digest_of(run: Path) -> str:
    saved = load_model(run / "checkpoints" / "rvq.json", "rvq")
    rvq = reference.RVQ(**saved.config)
    rvq.load_state_dict(saved.state)
    return quantizer_digest(rvq, 1)


@pytest.mark.slow
def test_what_a_run_records_and_does_not_save(quantizer, whole):
    digest, checkpoint = digest_of(quantizer), quantizer / "checkpoints" / "rvq.json"
    recipe = json.loads((whole / "config.json").read_text())["train"]["recipes"]["vocoder"]
    assert recipe["decoded_mels"] == str(checkpoint) and recipe["quantizer"] == digest
    saved = load_model(whole / "checkpoints" / "vocoder.json", "vocoder")
    assert saved.extra["decoded_mels"] == digest
    assert not any("codebooks" in name or "proj" in name for name in saved.state)
    state = load_training_state(whole / "checkpoints" / "state.pt")
    assert state["models"].keys() == {"vocoder", "mpd", "msd"}
    assert {"random", "trained", "griffin_lim", "decoded"} <= RunFolder(whole).results()[
        "vocoder"
    ].keys()


@pytest.mark.slow
def test_stopped_and_resumed_is_bit_equal(whole, stopped):
    assert load_training_state(stopped / "checkpoints" / "state.pt")["step"] == 4
    assert main("--resume", stopped) == 0
    states = [
        load_training_state(folder / "checkpoints" / "state.pt") for folder in (whole, stopped)
    ]
    assert_same(*states)


@pytest.mark.slow
def test_a_resumed_run_finds_its_quantizer_elsewhere_but_takes_no_other(stopped, capsys):
    config, checkpoint = stopped / "config.json", stopped.parent / "quantizer" / "checkpoints"
    before = config.read_text()
    other = quantizer_of(stopped.parent / "other.json")
    assert main("--resume", stopped, "--decoded-mels", other) == 1
    digest = digest_of(stopped.parent / "quantizer")
    assert f"was begun with quantizer = {digest}, not " in capsys.readouterr().err
    assert config.read_text() == before

    moved = shutil.copytree(checkpoint, stopped.parent / "moved") / "rvq.json"
    for path in other.parent.glob("other*"):  # another quantizer lies in the place of the first
        shutil.copy(path, checkpoint / path.name)
    (checkpoint / "other.json").replace(checkpoint / "rvq.json")
    assert main("--resume", stopped) == 1
    assert (
        "rvq.json: holds another quantizer than the run was begun with" in capsys.readouterr().err
    )
    assert main("--resume", stopped, "--decoded-mels", moved) == 0
    assert str(moved) in config.read_text()


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_quantizer(quantizer, tmp_path):
    folder = shutil.copytree(quantizer, tmp_path / "run")
    options = ["--stage", "vocoder", "--steps", "1", "--decoded-mels", folder]
    assert main("--resume", folder, *options) == 0
    saved = load_model(folder / "checkpoints" / "vocoder.json", "vocoder")
    assert saved.extra["decoded_mels"] == digest_of(folder)


def finished(speech: Path, checkpoint: Path, out: Path) -> RunFolder:
    """What a run leaves whose vocoder is finished, without the training; it has no quantizer."""
    folder = RunFolder(out)
    folder.clips.parent.mkdir(parents=True)
    run = {"data": str(speech), "split": "auto", "stage": "vocoder", "number": 1}
    folder.write_config(config_of(checkpoint, 1, "mean"), **run)
    write_clips(folder.clips, describe_clips(find_clips(speech), speech))
    folder.metrics("vocoder").touch()
    folder.add_results("vocoder", {"steps": 12})
    return folder


def resumed(folder: RunFolder, **options: Any) -> TrainConfig:
    with contextlib.ExitStack() as held:
        return resume_run(Options(resume=str(folder.path), **options), held)[1]


@pytest.mark.parametrize("stage", [None, "rvq"])
def test_a_finished_vocoders_quantizer_that_has_moved_is_missed_before_training(
    speech, tmp_path, stage
):
    folder = finished(speech, quantizer_of(tmp_path / "rvq.json"), tmp_path / "run")
    assert resumed(folder, stage=stage).recipe("vocoder").decoded_mels
    folder = RunFolder(shutil.copytree(folder.path, tmp_path / "copy"))
    (tmp_path / "rvq.json").rename(tmp_path / "gone.json")
    before = folder.config.read_bytes()
    with pytest.raises(CheckpointError, match=r"rvq\.json: .*--decoded-mels") as caught:
        resumed(folder, stage=stage)
    assert f"--resume {folder.path} --decoded-mels" in str(caught.value)
    assert folder.config.read_bytes() == before


def test_a_stage_that_is_not_trained_finds_its_quantizer_elsewhere_but_takes_no_other(
    speech, tmp_path
):
    folder = finished(speech, quantizer_of(tmp_path / "rvq.json"), tmp_path / "run")
    (tmp_path / "moved").mkdir()
    for path in tmp_path.glob("rvq*"):
        path.rename(tmp_path / "moved" / path.name)
    other = quantizer_of(tmp_path / "five.json", 1)
    saved = load_model(other, "rvq")
    rvq = reference.RVQ(**saved.config)
    save_model(other, "rvq", rvq, MEL, frames_per_code=1, pooling="mean")
    with pytest.raises(CheckpointError, match="was begun with quantizer = "):
        resumed(folder, stage="rvq", decoded_mels=str(other))
    moved = tmp_path / "moved" / "rvq.json"
    config = resumed(folder, stage="rvq", steps=7, decoded_mels=str(moved))
    assert config.recipe("vocoder").decoded_mels == str(moved)
    assert str(moved) in folder.config.read_text()
    assert config.recipe("rvq").steps == 7
    assert config.recipe("vocoder").steps == VocoderStage.recipes["smoke"].steps


# What does not fit


def test_a_quantizer_is_not_trained_beside_a_vocoder_for_another(speech, tmp_path, capsys):
    path = quantizer_of(tmp_path / "rvq.json")
    options = ["--preset", "smoke", "--data", speech, "--out", tmp_path / "run"]
    assert main(*options, "--decoded-mels", path) == 1
    error = capsys.readouterr().err
    assert "--decoded-mels: " in error and "--stage vocoder" in error
    assert not (tmp_path / "run").exists()


def test_nor_in_a_run_that_goes_on(speech, tmp_path):
    checkpoint = quantizer_of(tmp_path / "rvq.json")
    folder = finished(speech, checkpoint, tmp_path / "run")
    assert resumed(folder, stage="all").recipe("vocoder").decoded_mels  # only rvq is left to train
    (folder.path / "results.json").unlink()
    with pytest.raises(ValueError, match="--stage vocoder"):
        resumed(folder, stage="all")
    assert resumed(folder, stage="vocoder").recipe("vocoder").decoded_mels
    folder.add_results("rvq", {"steps": 24})
    assert resumed(folder, stage="all", decoded_mels=str(checkpoint))


@pytest.mark.parametrize("lib", [reference, muomni_fast], ids=["reference", "fast"])
def test_a_codec_of_a_vocoder_for_another_quantizer_is_warned_of(tmp_path, caplog, lib):
    pooled = 5, "stack"
    path = quantizer_of(tmp_path / "rvq.json", *pooled)
    saved = load_model(path, "rvq")
    rvq = reference.RVQ(**saved.config)
    rvq.load_state_dict(saved.state)
    digests = {"own": quantizer_digest(rvq, *pooled), "other": "0" * 64}
    generator = reference.HiFiGANVocoder(**preset("smoke").recipe("vocoder").model)
    warnings = {}
    for name, extra in {
        **{name: {"decoded_mels": digest} for name, digest in digests.items()},
        "none": {},
    }.items():
        save_model(tmp_path / f"{name}.json", "vocoder", generator, MEL, **extra)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            lib.SpeechCodec.from_checkpoints(path, tmp_path / f"{name}.json")
        warnings[name] = [record.getMessage() for record in caplog.records]
    assert warnings["own"] == warnings["none"] == []
    (warning,) = warnings["other"]
    assert str(tmp_path / "other.json") in warning and str(path) in warning


def test_what_does_not_fit_is_named_and_leaves_no_folder(speech, tmp_path, capsys):
    generator = reference.HiFiGANVocoder(**preset("smoke").recipe("vocoder").model)
    save_model(tmp_path / "vocoder.json", "vocoder", generator, MEL)
    other_mel = dataclasses.replace(MEL, fmax=7000.0)
    wrong = {
        tmp_path / "vocoder.json": "expected a rvq, got a vocoder",
        tmp_path / "none.json": "No such file",
        tmp_path: "holds no config.json, so it is not a run folder",
        quantizer_of(tmp_path / "mel.json", mel=other_mel): "fmax: 8000.0 != 7000.0",
        quantizer_of(tmp_path / "five.json", 5): "the quantizer has frames_per_code = 5, the run 1",
        quantizer_of(tmp_path / "stack.json", 1, "stack"): "pooling = stack, the run mean",
    }
    for path, message in wrong.items():
        assert begin(speech, path, tmp_path / "run") == 1
        error = capsys.readouterr().err
        assert message in error and str(path) in error
        assert not (tmp_path / "run").exists()


def test_only_a_stage_that_takes_decoded_mels_is_given_them(speech, tmp_path, capsys):
    path = tmp_path / "rvq.json"  # which nobody looks for
    options = ["--preset", "smoke", "--stage", "rvq", "--data", speech, "--out", tmp_path / "run"]
    assert main(*options, "--decoded-mels", path) == 1
    assert "--decoded-mels: not of the stages that are trained, rvq" in capsys.readouterr().err


def test_an_unfinished_quantizer_is_refused(speech, tmp_path, capsys):
    folder = RunFolder(tmp_path / "quantizer")
    folder.clips.parent.mkdir(parents=True)
    folder.config.write_text("{}")
    path = quantizer_of(folder.model("rvq"))
    for place in (folder.path, path):
        assert begin(speech, place, tmp_path / "run") == 1
        error = capsys.readouterr().err
        assert f"{place}: has not finished its rvq" in error
        assert f"--resume {folder.path} --stage rvq" in error
    folder.add_results("rvq", {"steps": 24})
    for place in (folder.path, path):
        assert finished_checkpoint(place, "rvq") == path


def test_a_config_names_a_quantizer_and_its_digest_or_neither():
    with pytest.raises(ValueError, match="decoded_mels and quantizer: expected both or neither"):
        preset("smoke").with_recipes(["vocoder"], decoded_mels="rvq.json")


def test_discriminators_there_must_be():
    config = preset("smoke")
    with pytest.raises(ValueError, match=r"periods and n_scales: expected .* got \(\) and 0"):
        config.with_recipes(["vocoder"], periods=(), n_scales=0)
    config.with_recipes(["vocoder"], periods=(2,), n_scales=0)
    config.with_recipes(["vocoder"], periods=(), n_scales=1)
