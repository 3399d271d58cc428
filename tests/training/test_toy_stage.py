"""What the training loop promises any stage, shown by one that the library does not know."""

import dataclasses
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from support.environment import ROOT
from support.training import assert_same, continued, losses, main, rows

from muomni_fast import reference

pytest.importorskip("soundfile")
for module in ("safetensors", "soxr", "matplotlib", "tqdm"):
    pytest.importorskip(module)

from support.toy_stage import ToyStage  # noqa: E402

from muomni_fast.reference import train  # noqa: E402
from muomni_fast.reference.checkpoint import load_training_state  # noqa: E402
from muomni_fast.reference.training import rvq_stage, trainer  # noqa: E402
from muomni_fast.reference.training.clips import find_clips  # noqa: E402
from muomni_fast.reference.training.data import Corpus  # noqa: E402
from muomni_fast.reference.training.presets import presets  # noqa: E402
from muomni_fast.reference.training.registry import STAGES, register  # noqa: E402
from muomni_fast.reference.training.run import SHIPPED_SPEECH, load_required  # noqa: E402
from muomni_fast.reference.training.run_folder import RunFolder  # noqa: E402

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
NEW = ["--preset", "smoke", "--steps", "8"]


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    register(ToyStage)
    with mock.patch.object(rvq_stage, "START_FRAMES", 2000):  # its quality is of no matter here
        yield
    del STAGES["toy"]


@pytest.fixture(scope="module")
def quantizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the stage that the toy requires."""
    folder = tmp_path_factory.mktemp("toy") / "quantizer"
    assert main(*NEW, "--stage", "rvq", "--out", folder) == 0
    return folder


def toy(folder: Path, *arguments: str) -> Path:
    assert main("--resume", folder, "--stage", "toy", *arguments) == 0
    return folder


@pytest.fixture(scope="module")
def whole(quantizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's run in one process and one micro-batch, with its report."""
    folder = continued(quantizer, tmp_path_factory.mktemp("toy") / "whole")
    assert train.main(["--device", "cpu", "--resume", str(folder), "--stage", "toy"]) == 0
    return folder


def state(folder: Path) -> dict[str, Any]:
    return load_training_state(folder / "checkpoints" / "state.pt")


def assert_equal_runs(folder: Path, whole: Path) -> None:
    """To what rounding in float64 does; a metrics table has nine digits."""
    for name, value in state(whole)["models"]["toy"].items():
        torch.testing.assert_close(state(folder)["models"]["toy"][name], value, rtol=0, atol=1e-13)
    for column in ("loss", "right"):
        there, here = losses(whole, "toy", column), losses(folder, "toy", column)
        assert len(set(there)) > 2
        np.testing.assert_allclose(here, there, rtol=1e-8)


def test_the_loop_names_no_stage():
    for name in ("train.py", "training/trainer.py", "training/run.py"):
        text = (ROOT / "reference" / name).read_text().lower()
        assert not [stage for stage in (*STAGES, "talker") if stage in text], name


def test_micro_batches_of_unequal_weight_average_exactly(quantizer, whole, tmp_path):
    assert_equal_runs(toy(continued(quantizer, tmp_path / "two", accumulate=2)), whole)
    assert_equal_runs(toy(continued(quantizer, tmp_path / "four", accumulate=4)), whole)


def test_a_gradient_scaler_changes_nothing(quantizer, whole, tmp_path):
    """float64 is left alone by autocast: what remains is scaling, which is by powers of two."""
    folder = continued(quantizer, tmp_path / "scaled", accumulate=2, amp="fp16")
    assert_equal_runs(toy(folder), whole)


def test_two_processes_equal_one(quantizer, whole, tmp_path):
    folder = continued(quantizer, tmp_path / "two", accumulate=2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = ROOT / "tests" / "support" / "toy_stage.py"
    done = subprocess.run(
        [*torchrun, str(script), "--device", "cpu", "--resume", str(folder), "--stage", "toy"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal_runs(folder, whole)


def test_the_items_are_ragged(quantizer, tmp_path):
    """Or the tests above would show nothing."""
    stage, data = toy_stage(quantizer)
    for step in range(4):
        weights = [float(stage.loss("toy", part).weight) for part in stage.split(data[step], 4)]
        assert max(weights) > 1.5 * min(weights)


def toy_stage(folder: Path) -> tuple[ToyStage, Any]:
    run = RunFolder(folder)
    config = presets()["smoke"]
    required = load_required(run, "toy", config, reference, CPU)
    stage = ToyStage(config, reference, CPU, required)
    stage.begin()
    return stage, stage.dataset(Corpus(find_clips(SHIPPED_SPEECH)))


def test_a_required_product_is_frozen_and_stays_out(quantizer, whole):
    stage, _ = toy_stage(quantizer)
    product = stage.required["rvq"]
    assert not product.training and not any(p.requires_grad for p in product.parameters())
    assert state(whole)["stage"] == "toy" and set(state(whole)["models"]) == {"toy"}
    for file in (quantizer / "checkpoints").glob("rvq*"):
        assert file.read_bytes() == (whole / "checkpoints" / file.name).read_bytes()


def test_a_missing_product_is_named_with_the_way_to_get_it(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(*NEW, "--stage", "toy", "--out", folder) == 1
    message = capsys.readouterr().err
    assert "toy: requires the product of rvq" in message
    assert f"--resume {folder} --stage rvq" in message
    assert main("--resume", folder, "--stage", "rvq", "--steps", "2") == 0
    toy(folder)
    assert state(folder)["step"] == 8  # as its run began
    assert (RunFolder(folder).results()["rvq"]["steps"]) == 2


def test_stopped_and_resumed_is_bit_equal(quantizer, whole, tmp_path, monkeypatch, capsys):
    folder = continued(quantizer, tmp_path / "run")
    real = trainer.Trainer._train_step

    def step(self, batch):
        if self.step == 6:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(trainer.Trainer, "_train_step", step)
    assert main("--resume", folder, "--stage", "toy") == 130
    assert state(folder)["step"] == 4
    monkeypatch.undo()
    assert main("--resume", folder, "--stage", "vocoder") == 1
    assert "holds toy at step 4, to be finished before vocoder" in capsys.readouterr().err
    toy(folder)
    assert_same(state(whole), state(folder))


def test_a_resumed_run_goes_on_with_every_random_generator(quantizer, tmp_path, monkeypatch):
    """And with a gradient scaler that has changed its scale."""
    real_loss, real_step = ToyStage.loss, trainer.Trainer._train_step

    def loss(self, pass_name, batch, earlier):
        result = real_loss(self, pass_name, batch, earlier)
        noise = random.random() + np.random.rand() + torch.rand(())
        return dataclasses.replace(result, loss=result.loss * noise)

    def step(self, batch):
        if self.step == stop_at:
            raise KeyboardInterrupt
        self.scaler.set_growth_interval(3)
        return real_step(self, batch)

    monkeypatch.setattr(ToyStage, "loss", loss)
    monkeypatch.setattr(trainer.Trainer, "_train_step", step)
    stop_at = None
    unbroken = toy(continued(quantizer, tmp_path / "unbroken", amp="fp16"))
    stop_at = 6
    folder = continued(quantizer, tmp_path / "run", amp="fp16")
    assert main("--resume", folder, "--stage", "toy") == 130
    stop_at = None
    toy(folder)
    assert state(folder)["scaler"]["scale"] > 65536
    assert_same(state(unbroken), state(folder))


def test_validation_keeps_its_own_time(quantizer, whole, tmp_path):
    folder = toy(continued(quantizer, tmp_path / "run", log_every=3, validate_every=2))
    table = {int(row["step"]): row.get("held_out_nats") for row in rows(folder, "toy")}
    assert list(table) == [1, 2, 3, 4, 6, 8]
    assert [step for step, nats in table.items() if nats] == [2, 4, 6, 8]
    assert_same(state(whole)["models"], state(folder)["models"])


def test_micro_batches_that_hold_nothing_do_not_count(quantizer, tmp_path, monkeypatch):
    """Alone in a micro-batch, short mels leave it empty; among others they are left out."""
    real, empty = ToyStage.loss, []

    def loss(self, pass_name, batch, earlier):
        long = [mel for mel in batch if len(mel) > 20]
        if long:
            return real(self, pass_name, long, earlier)
        empty.append(len(batch))
        result = real(self, pass_name, batch, earlier)
        nan = torch.tensor(torch.nan)
        return dataclasses.replace(result, loss=result.loss * nan, figures={"right": nan}, weight=0)

    monkeypatch.setattr(ToyStage, "loss", loss)
    one = toy(continued(quantizer, tmp_path / "one"))
    assert not empty
    for amp in ("none", "fp16"):
        four = toy(continued(quantizer, tmp_path / amp, accumulate=4, amp=amp))
        assert_equal_runs(four, one)
    assert len(empty) > 4 and np.isfinite(losses(four, "toy", "right")).all()


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_none_are_named(quantizer, tmp_path, monkeypatch, capsys, weight):
    real = ToyStage.loss
    monkeypatch.setattr(
        ToyStage, "loss", lambda *args: dataclasses.replace(real(*args), weight=weight)
    )
    folder = continued(quantizer, tmp_path / "run")
    assert main("--resume", folder, "--stage", "toy") == 1
    assert f"toy, pass toy: weight: expected a finite number >= 0, got {weight}" in (
        capsys.readouterr().err
    )


def test_a_stage_reports_for_itself(whole):
    report = (whole / "report.txt").read_text()
    nats = RunFolder(whole).results()["toy"]["trained"]["nats"]
    assert f"next code, held-out: {nats:.3f} nats\n8 steps" in report
    assert "quantizer, held-out log-mel" in report


def test_the_norm_of_a_gradient_is_limited(quantizer, whole, monkeypatch, tmp_path):
    """One step of plain descent at a rate of 1 moves by the gradient."""

    def distance(folder: Path) -> float:
        toy(folder, "--steps", "1")
        torch.manual_seed(presets()["smoke"].seed + list(STAGES).index("toy"))
        start = torch.nn.utils.parameters_to_vector(ToyStage.model_class(reference)().parameters())
        moved = state(folder)["models"]["toy"]
        return float((torch.cat([v.flatten() for v in moved.values()]) - start).norm().detach())

    assert distance(continued(quantizer, tmp_path / "limited")) == pytest.approx(0.25, rel=1e-4)
    monkeypatch.setattr(ToyStage, "max_grad_norm", None)
    assert distance(continued(quantizer, tmp_path / "free")) > 0.3


def test_what_cannot_be_registered():
    with pytest.raises(ValueError, match="'toy': the name is taken"):
        register(ToyStage)
    for name in ("all", "rvq"):
        with pytest.raises(ValueError, match="taken"):
            register(type("Other", (ToyStage,), {"name": name}))
    with pytest.raises(ValueError, match="requires \\['codec'\\]"):
        register(type("Other", (ToyStage,), {"name": "other", "requires": ("codec",)}))


def test_every_preset_has_every_stage():
    for config in presets().values():
        assert list(config.recipes) == ["rvq", "vocoder", "talker", "toy"]
        assert config.recipes["toy"] == ToyStage.recipe_class()
        saved = json.loads(json.dumps(dataclasses.asdict(config)))
        again = type(config).from_dict(saved)
        assert json.dumps(dataclasses.asdict(again)) == json.dumps(saved)
