"""Training that begins with the weights of a finished model."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from support.training import main

import muomni_fast
from muomni_fast import MelConfig

soundfile = pytest.importorskip("soundfile")
for module in ("safetensors", "soxr", "matplotlib", "tqdm"):
    pytest.importorskip(module)

from muomni_fast.reference.checkpoint import load_model  # noqa: E402
from muomni_fast.reference.training.registry import STAGES  # noqa: E402
from muomni_fast.reference.training.run_folder import RunFolder  # noqa: E402
from muomni_fast.reference.training.trainer import Trainer  # noqa: E402

# Neither is the shape of the preset that trains it.
RVQ = {"n_codebooks": 3, "codebook_size": 8, "codebook_dim": 4}
VOCODER = {
    "upsample_rates": (16, 16),
    "upsample_kernel_sizes": (32, 32),
    "upsample_initial_channel": 8,
    "resblock": "2",
    "resblock_kernel_sizes": (3,),
    "resblock_dilation_sizes": ((1, 3),),
}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    for i in range(6):
        noise = 0.1 * np.random.default_rng(i).standard_normal(6000)
        soundfile.write(folder / f"{i}.wav", noise, 16000)
    return folder


def saved(folder: Path, kind: str) -> Path:
    """A checkpoint of random weights, of no run."""
    torch.manual_seed(1)  # not what runs begin with
    model = muomni_fast.RVQ(**RVQ) if kind == "rvq" else muomni_fast.HiFiGANVocoder(**VOCODER)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # or all that so small a vocoder says is below the mel's floor
    muomni_fast.save(model, folder / f"{kind}.json", MelConfig())
    return folder / f"{kind}.json"


def train(speech: Path, out: Path, *options: object) -> int:
    return main("--preset", "smoke", "--data", speech, "--out", out, *options)


@pytest.mark.parametrize("kind", ["rvq", "vocoder"])
def test_training_begins_with_the_weights_given(speech, tmp_path, kind):
    path, run = saved(tmp_path, kind), RunFolder(tmp_path / "run")
    begun: dict[str, torch.Tensor] = {}
    begin = Trainer._train_step

    def noted(self, batch):
        if not begun:
            begun.update((k, v.clone()) for k, v in self.stage.product.state_dict().items())
        return begin(self, batch)

    with mock.patch.object(Trainer, "_train_step", noted):
        assert train(speech, run.path, "--stage", kind, "--init", path, "--steps", 2) == 0
    again = type(muomni_fast.load(path))(**load_model(path).config)
    again.load_state_dict(begun)
    for name, value in load_model(path).state.items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=1e-6, atol=1e-7)

    results = run.results()[kind]
    assert "given" in results and "start" not in results
    assert results["given"] != results["random"] and results["given"] != results["trained"]
    assert any("weights it began with" in line for line in STAGES[kind].report(results))
    config, _ = run.read_config()
    assert config.recipe(kind).init == str(path)
    # The shape is the checkpoint's; how the weights of a vocoder are trained is the preset's.
    trained = load_model(run.model(kind)).config
    assert trained == load_model(path).config | ({"weight_norm": True} if kind == "vocoder" else {})


def test_a_run_that_was_stopped_goes_on_and_takes_no_other_weights(speech, tmp_path, capsys):
    path, run = saved(tmp_path, "vocoder"), tmp_path / "run"
    options = "--stage", "vocoder", "--init", path, "--steps", 6
    begin = Trainer._train_step

    def stopped(self, batch):
        if self.step == 5:
            raise KeyboardInterrupt
        return begin(self, batch)

    with mock.patch.object(Trainer, "_train_step", stopped):
        assert train(speech, run, *options) == 130
    (tmp_path / "other").mkdir()
    other = saved(tmp_path / "other", "vocoder")
    assert main("--resume", run, "--init", other) == 1
    assert f"was begun with init = {path}" in capsys.readouterr().err
    for file in tmp_path.glob("vocoder*"):  # which a run that has begun no longer needs
        file.unlink()
    assert main("--resume", run) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--init: expected --stage rvq or vocoder, got ['rvq', 'vocoder', 'talker']"),
        (("--stage", "talker"), "--init: expected --stage rvq or vocoder, got ['talker']"),
        (("--stage", "vocoder"), "rvq.json: expected a vocoder, got a rvq"),
        (("--stage", "rvq", "--frames-per-code", 5), "give --frames-per-code 1"),
        (("--stage", "rvq", "--preset", "v1"), "n_mels: 80 != 128"),
    ],
)
def test_what_does_not_fit_is_refused_before_there_is_a_run(
    speech, tmp_path, capsys, options, message
):
    path, run = saved(tmp_path, "rvq"), tmp_path / "run"
    assert train(speech, run, "--init", path, *options) == 1
    assert message in capsys.readouterr().err
    assert not run.exists()


def test_weights_that_cannot_be_read_are_missed_before_there_is_a_run(speech, tmp_path, capsys):
    path, run = saved(tmp_path, "rvq"), tmp_path / "run"
    (weights,) = tmp_path.glob("*.safetensors")
    weights.unlink()
    assert train(speech, run, "--stage", "rvq", "--init", path) == 1
    assert f"{weights.name}: No such file" in capsys.readouterr().err
    assert not run.exists()


def test_other_weights_in_the_same_place_are_refused(speech, tmp_path, capsys):
    """By a run that was made and stopped before its first step."""
    path, run = saved(tmp_path, "rvq"), tmp_path / "run"
    with mock.patch.object(Trainer, "run", side_effect=KeyboardInterrupt):
        assert train(speech, run, "--stage", "rvq", "--init", path) == 130
    muomni_fast.save(muomni_fast.RVQ(**RVQ), path, MelConfig())
    assert main("--resume", run) == 1
    assert f"{path}: holds other weights than the run was begun with" in capsys.readouterr().err


def test_a_missing_checkpoint_is_named(speech, tmp_path, capsys):
    options = "--stage", "rvq", "--init", tmp_path / "rvq.json"
    assert train(speech, tmp_path / "run", *options) == 1
    assert "rvq.json: No such file" in capsys.readouterr().err
