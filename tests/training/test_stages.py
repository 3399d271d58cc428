"""What a training stage computes, without the loop around it."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from support.environment import SPEECH

import muomni_fast
from muomni_fast import log_mel, reference
from muomni_fast.reference.training.clips import Clip
from muomni_fast.reference.training.data import HeldOut, SpeechDataset, read_held_out
from muomni_fast.reference.training.losses import QUIET, spectral_convergence
from muomni_fast.reference.training.presets import TrainConfig, presets
from muomni_fast.reference.training.rvq_stage import RVQStage, validate_rvq
from muomni_fast.reference.training.stage import StepResult
from muomni_fast.reference.training.vocoder_stage import VocoderStage

SMOKE = presets()["smoke"]
CPU = torch.device("cpu")


def vocoder_stage(config: TrainConfig = SMOKE) -> tuple[VocoderStage, dict[str, torch.Tensor]]:
    stage = VocoderStage(config, reference, CPU)
    stage.begin()
    audio = 0.1 * torch.randn(2, config.segment_samples)
    return stage, {"audio": audio, "mel": log_mel(audio, config.mel)}


class Parrot(torch.nn.Module):
    """A generator that knows the answer."""

    def __init__(self, audio: torch.Tensor) -> None:
        super().__init__()
        self.audio = torch.nn.Parameter(audio)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        return self.audio


def test_a_perfect_generator_has_no_mel_or_feature_loss():
    """Generated and real audio go through one and the same mel."""
    stage, batch = vocoder_stage()
    stage.models["vocoder"] = Parrot(batch["audio"])
    stage.passes(step=10**6)
    figures = stage.loss("generator", batch).figures
    assert figures["mel_l1"] == figures["convergence"] == 0
    assert figures["feature_matching"] == 0


def test_each_pass_trains_its_own_side():
    stage, batch = vocoder_stage()
    generator, discriminators = stage.product, stage.discriminators
    for name in stage.passes(step=10**6):
        stage.loss(name, batch).loss.backward()
        sides = [
            any(p.grad is not None for p in m.parameters()) for m in (generator, discriminators)
        ]
        assert sides == ([False, True] if name == "discriminator" else [True, False])
        generator.zero_grad(), discriminators.zero_grad()


def test_both_passes_share_one_forward_unless_accumulating():
    for accumulate, forwards in ((1, 1), (2, 2)):
        config = dataclasses.replace(SMOKE, accumulate=accumulate)
        stage, batch = vocoder_stage(config)
        calls = []
        stage.product.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        results: dict[str, StepResult] = {}
        for name in stage.passes(step=10**6):
            results[name] = stage.loss(name, batch, results)
        assert len(calls) == forwards
        assert set(batch) == {"audio", "mel"}


def test_adversarial_training_starts_when_told():
    config = SMOKE.with_recipes(["vocoder"], adversarial_from=0.5, steps=10)
    stage, batch = vocoder_stage(config)
    assert stage.passes(step=4) == ["generator"]
    assert set(stage.loss("generator", batch).figures) == {"mel_l1", "convergence"}
    assert stage.passes(step=5) == ["discriminator", "generator"]


def test_discriminators_of_periods_alone():
    stage, batch = vocoder_stage(SMOKE.with_recipes(["vocoder"], n_scales=0))
    assert stage.models.keys() == {"vocoder", "mpd"} and len(stage.discriminators) == 1
    for name in stage.passes(step=10**6):
        assert stage.loss(name, batch).loss.isfinite()


def test_schedules():
    stage, _ = vocoder_stage()
    assert stage.learning_rate_factor(0, 0) == 1.0
    assert stage.learning_rate_factor(stage.steps, 9) == pytest.approx(0, abs=1e-12)
    v1 = dataclasses.replace(presets()["v1"].recipe("vocoder"), model={})
    published = VocoderStage(dataclasses.replace(SMOKE, recipes={"vocoder": v1}), reference, CPU)
    assert published.learning_rate_factor(10**5, 7) == pytest.approx(0.999**7)


def test_spectral_convergence_is_a_relative_error():
    real = torch.randn(3, 128, 20)
    made = (real.exp() * 1.5).log()
    torch.testing.assert_close(spectral_convergence(made, real), torch.tensor(0.5))


def test_spectral_convergence_of_silence_stays_small_and_differentiable():
    silence = torch.full((2, 128, 20), -11.5)
    noise = torch.full((2, 128, 20), -6.0, requires_grad=True)
    loss = spectral_convergence(noise, silence)
    assert loss < 0.003 / QUIET
    same = silence.clone().requires_grad_()
    spectral_convergence(same, silence).backward()
    assert same.grad is not None and same.grad.isfinite().all()


def test_quantizer_figures():
    rvq = muomni_fast.RVQ(
        n_codebooks=1, codebook_size=4, codebook_dim=3, n_mels=3, projections=False
    )
    rvq.codebooks[0].weight.data = torch.tensor([[0.0] * 3, [1.0] * 3, [2.0] * 3, [9.0] * 3])
    mel = torch.tensor([[0.0, 1.5, 2.0]]).expand(3, 3)  # (n_mels, T): frames 0, 1.5 and 2
    figures = validate_rvq(rvq, [mel, mel[:, :2]])
    assert figures["mel_mse"] == pytest.approx(2 * 0.25 / 5)
    assert figures["mel_l1"] == pytest.approx(2 * 0.5 / 5)
    assert figures["usage_1"] == 0.75


@pytest.mark.parametrize("pooling, n_mels", [("mean", 128), ("stack", 640)])
def test_codes_of_several_frames_are_judged_at_the_full_rate(pooling, n_mels):
    config = dataclasses.replace(SMOKE, frames_per_code=5, pooling=pooling)
    stage = RVQStage(config, reference, CPU)
    assert stage.product.n_mels == n_mels
    clip = HeldOut(Clip(Path(), ""), torch.zeros(1), torch.randn(128, 23))
    assert stage.validate([clip])["mel_mse"] > 0
    stage.begin()
    batch = {"mel": torch.randn(4, 128, 10)}
    result = stage.loss("rvq", batch)
    _, codes = result.kept
    assert codes.shape == (4, 2, 2) and result.loss.isfinite()
    assert set(batch) == {"mel"}


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("backend", [reference, muomni_fast], ids=["reference", "fast"])
def test_what_clips_shorter_than_a_segment_are_padded_with_changes_nothing(backend, dropout):
    """Nor does it matter beside what a clip stands."""
    config = dataclasses.replace(SMOKE, frames_per_code=5, pooling="mean")
    torch.manual_seed(0)
    stage = RVQStage(config.with_recipes(["rvq"], codebook_dropout=dropout), backend, CPU)
    stage.begin()
    frames, made = [20, 3, 12, 20], []
    speech = torch.randn(4, 128, 20)
    for filling in (speech, speech * 100):
        mel = torch.where(torch.arange(20) < torch.tensor(frames)[:, None, None], speech, filling)
        batch = {"audio": torch.zeros(4, 1), "mel": mel, "positions": range(4), "frames": frames}
        for n in (1, 4):
            results = [stage.loss("rvq", part) for part in stage.split(batch, n)]
            weights = torch.tensor([float(result.weight) for result in results])
            assert weights.sum() == 4 + 1 + 3 + 4
            share = weights / weights.sum()
            loss = sum(s * result.loss for s, result in zip(share, results, strict=True))
            codes = torch.cat([result.kept[1] for result in results])
            assert (codes[..., 0] >= 0).sum(1).tolist() == [4, 1, 3, 4]
            grads = torch.autograd.grad(loss, list(stage.rvq.parameters()))
            made.append([loss, codes, *grads])
    for other in made[1:]:
        torch.testing.assert_close(other, made[0], rtol=1e-4, atol=1e-6)


def test_dropped_codebooks_are_drawn_by_position_and_micro_batches_add_up():
    config = SMOKE.with_recipes(["rvq"], codebook_dropout=0.5)
    stage = RVQStage(config, reference, CPU)
    stage.begin()
    batch = {"audio": torch.zeros(64, 1), "mel": torch.randn(64, 128, 4)}
    batch |= {"positions": list(range(64, 128)), "frames": [4] * 64}
    (whole,) = stage.split(batch, 1)
    parts = stage.split(batch, 4)
    counts = whole["n_codebooks"]
    assert torch.equal(torch.cat([part["n_codebooks"] for part in parts]), counts)
    assert 8 <= (counts == 1).sum() <= 24  # a quarter of 64 on average
    assert counts.unique().tolist() == [1, 2]
    together = stage.loss("rvq", whole)
    _, codes = together.kept
    assert torch.equal((codes >= 0).sum(2), counts[:, None].expand(64, 4))
    losses = torch.stack([stage.loss("rvq", part).loss for part in parts])
    torch.testing.assert_close(losses.mean(), together.loss)
    assert "n_codebooks" not in RVQStage(SMOKE, reference, CPU).split(batch, 1)[0]
    with pytest.raises(ValueError, match="codebook_dropout: expected 0 to 1, got 1.5"):
        SMOKE.with_recipes(["rvq"], codebook_dropout=1.5)


@pytest.mark.slow
def test_every_prefix_is_worth_a_quantizer_of_so_many_codebooks():
    """On shipped speech, held out by clip: at most 1.03 times the error of one that was trained for
    k codebooks alone, from the same start, by as many steps on the same segments."""
    paths = sorted((SPEECH / "wavs").glob("*.flac"))[::4]
    held = [h.mel for h in read_held_out([Clip(path, "") for path in paths[::5]], SMOKE.mel)]
    training = [Clip(path, "") for path in paths if path not in paths[::5]]
    recipe = dataclasses.replace(presets()["muomni-8"].recipe("rvq"), steps=40, batch_size=16)

    def trained(n_codebooks: int, start: muomni_fast.RVQ | None) -> RVQStage:
        model = {"n_codebooks": n_codebooks, "codebook_size": 32, "codebook_dim": 24}
        changes = {"model": model, "codebook_dropout": 0.5 if start is None else 0.0}
        recipes = {"rvq": dataclasses.replace(recipe, **changes)}
        stage = RVQStage(
            dataclasses.replace(presets()["muomni-8"], recipes=recipes), muomni_fast, CPU
        )
        if start is None:
            stage.start(data)
        else:
            stage.product.load_state_dict(first_codebooks(start, n_codebooks))
        started.append(copy.deepcopy(stage.product))
        stage.begin()
        (optimiser,) = stage.optimisers.values()
        for step in range(stage.steps):
            (part,) = stage.split(data[step], 1)
            optimiser.zero_grad()
            result = stage.loss("rvq", part)
            result.loss.backward()
            optimiser.step()
            stage.after_step([{"rvq": result}])
        return stage

    started: list[muomni_fast.RVQ] = []
    data = SpeechDataset(training, SMOKE.mel, 8960, 16, by_length=True)
    several = trained(3, None).product
    errors = []
    for k in (1, 2, 3):
        prefix = muomni_fast.RVQ(**several.config | {"n_codebooks": k})
        prefix.load_state_dict(first_codebooks(several, k))
        alone = trained(k, started[0]).product
        errors.append([validate_rvq(rvq, held, 5, "stack")["mel_mse"] for rvq in (prefix, alone)])
    for of_prefix, of_alone in errors:
        assert of_prefix <= 1.03 * of_alone
    assert errors[2][0] < 0.8 * errors[0][0]


def first_codebooks(rvq: muomni_fast.RVQ, k: int) -> dict[str, torch.Tensor]:
    """Weights of a quantizer of the first k codebooks."""
    later = tuple(f"codebooks.{q}." for q in range(k, rvq.n_codebooks))
    return {name: w for name, w in rvq.state_dict().items() if not name.startswith(later)}
