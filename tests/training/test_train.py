"""The training loop: its outputs, resuming, reproducibility, several processes, and failures."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.environment import SPEECH
from support.training import SCRIPT, assert_same, losses, main, rows, run

import muomni_fast
from muomni_fast.reference.training.presets import TrainConfig, preset, presets

soundfile = pytest.importorskip("soundfile")
for module in ("safetensors", "soxr", "matplotlib", "tqdm"):
    pytest.importorskip(module)

from muomni_fast.reference import train  # noqa: E402
from muomni_fast.reference.checkpoint import load_training_state  # noqa: E402
from muomni_fast.reference.training import rvq_stage, trainer  # noqa: E402
from muomni_fast.reference.training.clips import Clip  # noqa: E402
from muomni_fast.reference.training.data import Corpus, HeldOut  # noqa: E402

pytestmark = pytest.mark.slow

SMOKE = ["--preset", "smoke"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One unbroken run of all stages."""
    folder = tmp_path_factory.mktemp("smoke") / "run"
    done = run(*SMOKE, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert "quantizer, held-out log-mel" in done.stdout
    return folder


def test_a_run_leaves_what_it_promises(smoke):
    names = {str(p.relative_to(smoke)) for p in smoke.rglob("*") if p.is_file()}
    expected = {"config.json", "results.json", "report.txt", "losses.png", "checkpoints/state.pt"}
    expected |= {
        "metrics-rvq.csv",
        "metrics-vocoder.csv",
        "metrics-talker.csv",
        "checkpoints/rvq.json",
        "checkpoints/vocoder.json",
        "checkpoints/talker.json",
    }
    assert expected <= names
    assert sum(name.startswith("mels-") for name in names) == 4  # one is of a training clip
    found = sorted((smoke / "audio").iterdir())
    # What the Talker says has a length of its own.
    audio = [p for p in found if "talker" not in p.name and not p.name.startswith("training")]
    assert len(audio) == 15
    for path in audio:
        clip = path.name[2:8]
        original = soundfile.info(SPEECH / "wavs" / f"{clip}.flac").frames
        assert soundfile.info(path).frames == original
    results = json.loads((smoke / "results.json").read_text())
    assert {"random", "start", "trained", "sizes", "steps_per_second"} <= set(results["rvq"])
    assert {"random", "trained"} <= set(results["vocoder"])
    assert {"1 x 16", "2 x 16", "1 x 256"} == set(results["rvq"]["sizes"])


def test_the_adversarial_part_really_runs(smoke):
    for column in ("mel_l1", "discriminator", "generator", "feature_matching"):
        values = losses(smoke, "vocoder", column)
        assert len(values) == 12 and np.isfinite(values).all() and len(set(values)) == 12


@pytest.mark.parametrize("stage", ["rvq", "vocoder"])
def test_killed_and_resumed_is_bit_equal(smoke, tmp_path, stage):
    """SIGKILL at a random step, then --resume: everything as in the unbroken run."""
    folder = tmp_path / "run"
    seed = random.randrange(2**32)
    kill_after = random.Random(seed).randint(1, 20 if stage == "rvq" else 10)
    print(f"seed {seed}: kill after {stage} step {kill_after}")
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "--device", "cpu", *SMOKE, "--out", folder],
        stderr=subprocess.DEVNULL,
    )
    table, deadline = folder / f"metrics-{stage}.csv", time.time() + 120
    while time.time() < deadline and process.poll() is None:
        if table.exists() and table.read_text().count("\n") > kill_after:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "report.txt").exists(), "killed too late to test anything"
    assert main("--resume", folder) == 0
    whole, again = (load_training_state(f / "checkpoints" / "state.pt") for f in (smoke, folder))
    assert_same(whole, again)
    for name in ("rvq", "vocoder"):
        documents = [
            json.loads((f / "checkpoints" / f"{name}.json").read_text()) for f in (smoke, folder)
        ]
        assert documents[0]["sha256"] == documents[1]["sha256"]
        timing = "steps_per_second"
        tables = [
            [{k: v for k, v in r.items() if k != timing} for r in rows(f, name)]
            for f in (smoke, folder)
        ]
        assert tables[0] == tables[1]


def test_same_seed_same_run_other_seed_other_run(smoke, tmp_path):
    for seed, same in ((0, True), (1, False)):
        folder = tmp_path / str(seed)
        assert main(*SMOKE, "--seed", seed, "--out", folder) == 0
        for stage in ("rvq", "vocoder"):
            assert np.array_equal(losses(folder, stage), losses(smoke, stage)) == same


def test_fast_and_reference_share_the_loop(smoke, tmp_path):
    assert main(*SMOKE, "--backend", "fast", "--out", tmp_path / "fast") == 0
    for stage, tolerance in (("rvq", 2e-5), ("vocoder", 1e-3)):
        np.testing.assert_allclose(
            losses(tmp_path / "fast", stage), losses(smoke, stage), rtol=tolerance
        )


def test_two_processes_equal_one_with_the_whole_batch(tmp_path):
    """The first ten steps of both stages within 1e-5 relative; the one process has the reference's
    modules, the two have the fast ones."""
    common = [*SMOKE, "--steps", "10", "--batch-size", "4"]
    assert main(*common, "--out", tmp_path / "one") == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, str(SCRIPT), "--device", "cpu", *common, "--backend", "fast"]
    command += ["--out", str(tmp_path / "two")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("rvq", "vocoder"):
        one, two = losses(tmp_path / "one", stage), losses(tmp_path / "two", stage)
        assert len(one) == 10
        np.testing.assert_allclose(two, one, rtol=1e-5)


def test_accumulation_equals_the_whole_batch(tmp_path):
    """Zeroing every micro-batch, or never stepping, would change every step after the first."""
    common = [*SMOKE, "--steps", "6", "--batch-size", "4"]
    assert main(*common, "--out", tmp_path / "one") == 0
    assert main(*common, "--accumulate", "2", "--out", tmp_path / "two") == 0
    for stage in ("rvq", "vocoder"):
        one, two = losses(tmp_path / "one", stage), losses(tmp_path / "two", stage)
        assert len(set(one)) == 6
        # Spectral norm's power iteration runs once per forward, so the vocoder is close, not equal.
        np.testing.assert_allclose(two, one, rtol=1e-5 if stage == "rvq" else 1e-2)


def test_codes_of_five_stacked_frames_and_half_precision(tmp_path, failing):
    options = ["--frames-per-code", "5", "--pooling", "stack", "--amp", "bf16", "--steps", "3"]
    assert main(*SMOKE, *options, "--out", tmp_path / "run") == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["train"]
    assert config["frames_per_code"] == 5 and config["segment_samples"] % (5 * 256) == 0
    assert config["pooling"] == "stack"
    assert np.isfinite(losses(tmp_path / "run", "vocoder")).all()
    saved = tmp_path / "run" / "checkpoints" / "rvq.json"
    codec = muomni_fast.SpeechCodec.from_checkpoints(saved)
    assert codec.rvq.n_mels == 640 and codec.encode(torch.randn(1, 6400)).shape == (1, 5, 2)
    said = failing("--resume", tmp_path / "run", "--pooling", "mean")
    assert "was begun with pooling = stack, not mean" in said


def test_one_stage_alone(tmp_path):
    arguments = [*SMOKE, "--device", "cpu", "--stage", "rvq", "--steps", "3"]
    assert train.main([*arguments, "--out", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "run" / "metrics-vocoder.csv").exists()
    assert len(list((tmp_path / "run" / "audio").iterdir())) == 9  # no HiFi-GAN


def test_presets_are_the_published_shapes():
    all_presets = presets()
    muomni = {"muomni", "muomni-4", "muomni-8", "muomni-62", "muomni-62-small"}
    assert set(all_presets) == {"quick", "smoke", "v1", "v2", "v3"} | muomni
    for name in ("v1", "v2", "v3"):
        config, recipe = all_presets[name], all_presets[name].recipe("vocoder")
        assert config.mel.sample_rate == 22050 and config.mel.n_mels == 80
        assert config.segment_samples == 8192 and recipe.batch_size == 16
        assert recipe.learning_rate == 2e-4 and recipe.adversarial_from == 0
        assert recipe.periods == (2, 3, 5, 7, 11) and recipe.n_scales == 3
    rvq_keys = {"n_codebooks", "codebook_size"}
    assert not rvq_keys & set(all_presets["muomni"].recipe("rvq").model)  # the default shape
    saved = json.loads(json.dumps(presets()["v3"], default=vars))
    assert TrainConfig.from_dict(saved).recipe("vocoder").learning_rate == 2e-4


@pytest.mark.parametrize(
    "name, codes_per_second, n_codebooks, n_mels",
    [("muomni", 12.5, 2, 128), ("muomni-4", 12.5, 4, 640), ("muomni-8", 12.5, 8, 640)]
    + [("muomni-62", 62.5, 8, 128)],
)
def test_presets_of_one_mel_at_several_rates(name, codes_per_second, n_codebooks, n_mels):
    config, muomni = preset(name), preset("muomni")
    with torch.device("meta"):
        rvq = muomni_fast.RVQ(**config.recipe("rvq").shape(config))
    assert config.mel.frame_rate / config.frames_per_code == codes_per_second
    assert (rvq.n_codebooks, rvq.codebook_size, rvq.n_mels) == (n_codebooks, 128, n_mels)
    assert config.mel == muomni.mel
    assert config.recipe("vocoder") == muomni.recipe("vocoder")


def test_a_config_with_two_fields_for_each_stage_loads():
    """What runs wrote before a config held recipes by stage."""
    config = presets()["smoke"]
    saved = json.loads(json.dumps(config, default=vars))
    for stage, recipe in saved.pop("recipes").items():
        saved[stage] = recipe.pop("model")
        saved[f"{stage}_recipe"] = recipe
    again = TrainConfig.from_dict(saved)
    assert json.dumps(again, default=vars) == json.dumps(config, default=vars)
    saved["recipes"] = {"unheard": {}}
    with pytest.raises(ValueError, match="unheard is not a stage; there are rvq, vocoder, talker"):
        TrainConfig.from_dict(saved)


# Failures


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command line in this process, to fail; returns what it says."""

    def call(*arguments: str | Path) -> str:
        assert main(*arguments) == 1
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return message

    return call


def test_bad_data_is_named(tmp_path, failing):
    done = run(*SMOKE, "--data", tmp_path / "nowhere", "--out", tmp_path / "a")
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert "nowhere: no such file" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "empty").mkdir()
    assert "empty: no audio found" in failing(
        *SMOKE, "--data", tmp_path / "empty", "--out", tmp_path / "b"
    )


def test_odd_files_train_and_bad_ones_are_counted(tmp_path):
    """Stereo, 8/24 bits, float, odd rates and short clips train; garbage and silence do not."""
    data, tone = tmp_path / "data", np.random.default_rng(0).standard_normal(20000).clip(-3, 3) / 10
    data.mkdir()
    soundfile.write(data / "stereo.wav", np.stack([tone, tone], 1), 16000)
    soundfile.write(data / "bits8.wav", tone, 16000, subtype="PCM_U8")
    soundfile.write(data / "bits24.wav", tone, 16000, subtype="PCM_24")
    soundfile.write(data / "float.wav", tone, 16000, subtype="FLOAT")
    soundfile.write(data / "odd.wav", tone, 11025)
    soundfile.write(data / "short.wav", tone[:300], 16000)
    soundfile.write(data / "other.wav", tone, 16000)
    soundfile.write(data / "silent.wav", 0 * tone, 16000)
    (data / "garbage.flac").write_bytes(b"fLaC garbage")
    whole = (data / "other.wav").read_bytes()
    (data / "truncated.wav").write_bytes(whole[: len(whole) // 2])
    done = run(*SMOKE, "--stage", "rvq", "--data", data, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for name in ("silent.wav: silent", "garbage.flac: not readable", "truncated.wav: truncated"):
        assert name in done.stderr
    skipped = json.loads((tmp_path / "run" / "results.json").read_text())["rvq"]["skipped"]
    held_out = done.stderr.count("left out of the held-out clips")
    assert skipped["clips"] == 3 - held_out


def test_run_folders_are_never_overwritten(tmp_path, failing, monkeypatch):
    (tmp_path / "precious.txt").write_text("x")
    assert "not empty" in failing(*SMOKE, "--out", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "no run to resume" in failing("--resume")
    assert "not a run folder" in failing("--resume", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--accumulate", "0"], "--accumulate: expected at least 1, got 0"),
        (["--accumulate", "3"], "multiple of processes x --accumulate, 1 x 3, got 4"),
        (["--frames-per-code", "0"], "--frames-per-code: expected at least 1"),
        (["--seed", "-1"], "--seed: expected at least 0, got -1"),
        (["--steps", "0"], "--steps: expected at least 1, got 0"),
        (["--device", "nonsense"], "--device nonsense"),
        (["--out", "/dev/null"], "/dev/null"),
        (["--data", ""], "no audio found"),
    ],
)
def test_options_out_of_range_are_named(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(*SMOKE, *arguments) == 1
    assert message in capsys.readouterr().err


def test_resume_notices_that_the_data_changed(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for i in range(4):
        noise = 0.1 * np.random.default_rng(i).standard_normal(8000)
        soundfile.write(data / f"{i}.wav", noise, 16000)
    assert main(*SMOKE, "--stage", "rvq", "--data", data, "--out", tmp_path / "run") == 0
    (data / "3.wav").rename(data / "4.wav")
    message = "does not hold the clips it was begun with: "
    assert main("--resume", tmp_path / "run") == 1
    assert f"{message}3.wav is missing; 4.wav is new" in capsys.readouterr().err
    (data / "4.wav").rename(data / "3.wav")
    assert main("--resume", tmp_path / "run") == 0
    soundfile.write(data / "1.wav", noise[:7000], 16000)
    assert main("--resume", tmp_path / "run") == 1
    assert f"{message}1.wav: size 16044 -> 14044, frames 8000 -> 7000" in capsys.readouterr().err


def test_resume_refuses_other_settings(smoke, failing):
    message = failing("--resume", smoke, "--seed", "3")
    assert "seed = 0, not 3" in message
    assert "--out elsewhere: a resumed run stays" in failing(
        "--resume", smoke, "--out", "elsewhere"
    )
    assert "preset = smoke, not quick" in failing("--resume", smoke, "--preset", "quick")


def test_a_damaged_state_is_named_and_kept(smoke, tmp_path, failing):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(smoke, folder)
    (folder / "results.json").unlink()
    state = folder / "checkpoints" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    assert "state.pt: damaged" in failing("--resume", folder)
    assert state.stat().st_size == 1000


def test_settings_that_do_not_fit_are_named():
    config = presets()["smoke"]
    from dataclasses import replace

    with pytest.raises(ValueError, match="256.*300"):
        replace(config, mel=replace(config.mel, hop_length=300))
    with pytest.raises(ValueError, match="n_mels = 128.*80"):
        replace(config, mel=replace(config.mel, n_mels=80))
    with pytest.raises(ValueError, match="segment_samples.*2000"):
        replace(config, segment_samples=2000)
    with pytest.raises(ValueError, match='pooling: expected "mean" or "stack", got .sum.'):
        replace(config, pooling="sum")
    fixed = config.with_recipes(["rvq"], model={"n_mels": 128})
    with pytest.raises(ValueError, match="n_mels = 128, but frames_per_code = 5 .* 128 have 640"):
        replace(fixed, frames_per_code=5, pooling="stack", segment_samples=2560)


def test_a_config_without_pooling_is_of_means():
    from dataclasses import asdict

    saved = asdict(presets()["muomni"])
    del saved["pooling"]
    assert TrainConfig.from_dict(saved) == presets()["muomni"]


def poison(monkeypatch: pytest.MonkeyPatch, bad_steps: set[int]) -> None:
    """Make the loss NaN at some calls."""
    calls = {"n": 0}
    real = rvq_stage.RVQStage.loss

    def loss(self, pass_name, batch, earlier):
        result = real(self, pass_name, batch, earlier)
        calls["n"] += 1
        factor = float("nan") if calls["n"] in bad_steps else 1
        return dataclasses.replace(result, loss=result.loss * factor)

    monkeypatch.setattr(rvq_stage.RVQStage, "loss", loss)


def test_a_nan_loss_skips_its_step_and_is_counted(tmp_path, monkeypatch, caplog):
    poison(monkeypatch, {5, 6, 9})
    assert main(*SMOKE, "--stage", "rvq", "--out", tmp_path / "run") == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())["rvq"]
    assert results["skipped"]["steps"] == 3
    assert caplog.text.count("loss or gradient is nan, step skipped") == 3
    assert np.isfinite(results["trained"]["mel_mse"])


def test_a_loss_that_stays_nan_stops_and_keeps_the_checkpoint(tmp_path, monkeypatch, capsys):
    poison(monkeypatch, set(range(9, 99)))
    assert main(*SMOKE, "--stage", "rvq", "--out", tmp_path / "run") == 1
    message = capsys.readouterr().err
    assert "not finite for 10 steps in a row, up to step 18" in message
    assert "state.pt holds the last checkpoint" in message
    state = load_training_state(tmp_path / "run" / "checkpoints" / "state.pt")
    assert all(torch.isfinite(v).all() for v in state["models"]["rvq"].values())


def test_weights_that_are_not_finite_never_replace_a_checkpoint(tmp_path, monkeypatch, capsys):
    real = trainer.Trainer._train_step

    def step(self, batch):
        figures = real(self, batch)
        if self.step == 6:
            self.stage.product.proj_in.weight.data[0, 0] = torch.inf
        return figures

    monkeypatch.setattr(trainer.Trainer, "_train_step", step)
    assert main(*SMOKE, "--stage", "rvq", "--out", tmp_path / "run") == 1
    assert "rvq: weights are not finite" in capsys.readouterr().err
    assert load_training_state(tmp_path / "run" / "checkpoints" / "state.pt")["step"] == 4


def test_a_gradient_that_is_not_finite_skips_its_step(tmp_path, monkeypatch):
    real = rvq_stage.RVQStage.loss
    calls: list[int] = []
    counted = []
    monkeypatch.setattr(trainer.Trainer, "_count_nan", lambda self, loss: counted.append(self.step))

    def counting(self, pass_name, batch, earlier):
        result = real(self, pass_name, batch, earlier)
        calls.append(1)
        if len(calls) not in (3, 4):
            return result
        nothing = (self.rvq.proj_in.weight[0, 0] * 0).sqrt()  # 0, with gradient NaN
        return dataclasses.replace(result, loss=result.loss + nothing)

    monkeypatch.setattr(rvq_stage.RVQStage, "loss", counting)
    assert main(*SMOKE, "--stage", "rvq", "--out", tmp_path / "run") == 0
    assert counted == [2, 3]


def test_a_full_disk_stops_with_the_previous_checkpoint_intact(tmp_path, monkeypatch, capsys):
    saves = {"n": 0}
    real = trainer.save_training_state

    def save(path, state):
        saves["n"] += 1
        if saves["n"] == 3:
            monkeypatch.setattr(
                os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
            )
        real(path, state)

    monkeypatch.setattr(trainer, "save_training_state", save)
    folder = tmp_path / "run"
    assert main(*SMOKE, "--stage", "rvq", "--out", folder) == 1
    assert "state.pt: cannot write" in capsys.readouterr().err
    assert load_training_state(folder / "checkpoints" / "state.pt")["step"] == 8
    monkeypatch.undo()
    assert main("--resume", folder) == 0


def test_a_run_with_dropout_reports_what_prefixes_and_a_beam_are_worth(tmp_path):
    config = presets()["smoke"].with_recipes(["rvq"], codebook_dropout=0.5, steps=2)
    stage = rvq_stage.RVQStage(config, muomni_fast, torch.device("cpu"))
    data = stage.dataset(Corpus([Clip(SPEECH / "wavs" / "ada-01.flac", "ada")]))
    stage.start(data)
    held_out = [HeldOut(data.clips[0], *data.load(0))]
    results = {"random": stage.validate(held_out), "start": stage.validate(held_out)}
    results |= stage.comparisons(data, held_out, results) | {"trained": results["start"]}
    errors = [part["mel_mse"] for part in results["parts"].values()]
    assert list(results["parts"]) == ["first 1 of 2", "beam 5"]
    assert errors[1] < results["start"]["mel_mse"] < errors[0]
    lines = "\n".join(stage.report(results))
    assert f"trained, first 1 of 2{errors[0]:>21.3f}" in lines and "trained, beam 5 " in lines
