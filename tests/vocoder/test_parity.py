"""The fast vocoder is as near to float64 as PyTorch is: audio, gradients, training, streams.

By its CPU path at real sizes, and by the interpreted kernels on a few frames; on a GPU by the
kernels themselves, in bench/gpu_vocoder.py.
"""

import copy

import numpy as np
import pytest
import torch
from support.activations import branch_by_branch, signs_given, signs_of, signs_seen
from support.vocoder_problems import (
    GENERATORS,
    generator,
    in_float64,
    keep_variance,
    snr_db,
    worst_window_db,
)
from torch import Tensor, nn

import muomni_fast
from muomni_fast import MelConfig, log_mel, reference
from muomni_fast.kernels.vocoder import configs as conv_configs
from muomni_fast.reference.training.presets import presets
from muomni_fast.reference.training.stage import StepResult
from muomni_fast.reference.training.vocoder_stage import VocoderStage
from muomni_fast.vocoder import generator as generator_ops
from muomni_fast.vocoder import torch_backend as torch_vocoder
from muomni_fast.vocoder import triton_backend as triton_vocoder
from muomni_fast.vocoder.orders import apart
from muomni_fast.vocoder.plan import plan_of_blocks, plan_of_generator
from muomni_fast.vocoder.shapes import Blocks

pytestmark = [pytest.mark.cpu_rounding, pytest.mark.long]
CPU = torch.device("cpu")
every_preset = pytest.mark.parametrize("preset", GENERATORS)
# Lowest signal to noise ratio in float32 (and of gradients), weights that keep the variance.
FORWARD_FLOOR, GRADIENT_FLOOR = 110, 100


@pytest.fixture(params=["torch", "triton"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What runs; large tiles, so that interpreting takes seconds."""
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", request.param)
    tile = conv_configs.ConvConfig(256, 128, 128, 4, 1)
    monkeypatch.setattr(conv_configs, "INTERPRETER_TILE", tile)
    return request.param


def fast_twin(model: nn.Module) -> nn.Module:
    """The same weights in the fast module."""
    twin = muomni_fast.HiFiGANVocoder(**model.config)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def gradients(model: nn.Module, x: Tensor, direction: Tensor) -> list[Tensor]:
    """Of x and every weight and bias, in the operators' order; `direction` arrives at the audio."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    model(x).backward(direction)
    return [x.grad, *(p.grad for p in plan_of_generator(model).tensors())]


def assert_near(found: Tensor, theirs: Tensor, right: Tensor, floor: float) -> None:
    """At most 3 dB below what PyTorch reaches, overall and in the worst window; above a floor."""
    assert snr_db(found, right) >= max(floor, snr_db(theirs, right) - 3)
    assert worst_window_db(found, right) >= worst_window_db(theirs, right) - 3


@every_preset
def test_audio(backend, preset):
    model = generator(preset)
    mel = torch.randn(
        1 if backend == "triton" else 6, model.n_mels, 2 if backend == "triton" else 17
    )
    with torch.no_grad():
        right = in_float64(model)(mel.double())
        for twin in (fast_twin(model), fast_twin(model).prepare()):
            assert_near(twin(mel), model(mel), right, FORWARD_FLOOR)


@every_preset
def test_gradients_of_a_generator(backend, preset):
    """Each against float64 with the same activations: rounding decides the sign of one near zero,
    of which there are some in a million. Small gradients together, as a few errors are chance."""
    model = generator(preset)
    mel = torch.randn(1, model.n_mels, 2 if backend == "triton" else 9)
    direction = torch.randn(1, mel.shape[2] * model.hop_length)
    shape, wide = plan_of_generator(model).shape, in_float64(model)
    tensors = [t.detach() for t in plan_of_generator(model).tensors()]
    arguments = tensors, None, shape.spec
    audio, kept = generator_ops.generator_train(mel, *arguments)
    needs = [True] * (1 + len(tensors))
    arguments = direction, audio, mel, kept, *arguments, needs
    of_mel, packed = generator_ops.generator_backward(*arguments)
    ours = [of_mel, *apart(packed, tensors)]
    with signs_given(signs_of(kept, shape, backend)):
        ours_right = gradients(wide, mel.double(), direction.double())
    with signs_seen() as signs:
        theirs = gradients(model, mel, direction)
    with signs_given(signs):
        theirs_right = gradients(wide, mel.double(), direction.double())
    pairs = zip(ratios_db(ours, ours_right), ratios_db(theirs, theirs_right), strict=True)
    for own, other in pairs:
        assert own >= max(GRADIENT_FLOOR, other - 3)


def ratios_db(found: list[Tensor], right: list[Tensor]) -> list[float]:
    """`snr_db` of every gradient, small ones together, each counting as much as another."""
    large, small = [], []
    for g, r in zip(found, right, strict=True):
        if g.numel() >= 1000:
            large.append(snr_db(g, r))
        else:
            small.append((g.double().flatten() / r.norm(), r.flatten() / r.norm()))
    return [*large, snr_db(*(torch.cat(side) for side in zip(*small, strict=True)))]


STAGES = {
    "default": (128, Blocks("1", (3, 5, 7), ((1, 2),) * 3)),
    "V1": (256, Blocks("1", (3, 7, 11), ((1, 3, 5),) * 3)),
    "V1, last": (32, Blocks("1", (3, 7, 11), ((1, 3, 5),) * 3)),
    "V2, last": (8, Blocks("1", (3, 7, 11), ((1, 3, 5),) * 3)),
    "V3": (128, Blocks("2", (3, 5, 7), ((1, 2), (2, 6), (3, 12)))),
    "one block": (64, Blocks("1", (11,), ((1, 3, 5),))),
}


@pytest.mark.parametrize("name", STAGES)
def test_gradients_of_a_stage_with_the_same_activations(backend, name):
    """Against the same formulas in float64 on what the forward kept, signs of activations included,
    every gradient by itself, and the forward."""
    channels, blocks = STAGES[name]
    mrf = keep_variance(reference.MRF(channels, blocks.taps, blocks.dilations, blocks.kind))
    tensors = [t.detach() for t in plan_of_blocks(list(mrf.resblocks)).tensors()]
    rows = 70 if backend == "triton" else 300
    x, direction = torch.randn(2, 1, channels, rows).unbind()
    needs = [True] * len(tensors)
    run = triton_vocoder if backend == "triton" else torch_vocoder
    y, kept = run.level(x, run.pack_blocks(tensors, blocks), blocks, keep=True)
    with torch.no_grad():
        right = in_float64(mrf)(x.double())
        assert_near(y, mrf(x), right, FORWARD_FLOOR)
    d_x, grads = run.level_grad(direction, x, kept, tensors, blocks, needs)
    if backend == "triton":
        kept = branch_by_branch(kept, blocks)
    wide = lambda found: [t.double() for t in found]
    right_x, right_grads = torch_vocoder.level_grad(
        direction.double(), x.double(), wide(kept), wide(tensors), blocks, needs
    )
    for found, expected in zip([d_x, *grads], [right_x, *right_grads], strict=True):
        assert snr_db(found, expected) >= GRADIENT_FLOOR


# Published weights and real speech


@pytest.fixture(scope="module")
def published(weights) -> tuple[nn.Module, Tensor, Tensor]:
    """V2 trained on LJ Speech, a mel (n_mels, T) and the waveform published code makes of it."""
    folder = weights / "hifigan_LJ_V2"
    model = muomni_fast.HiFiGANVocoder.from_hifigan(folder / "config.json", folder / "generator_v2")
    stored = np.load(next((folder / "reference").glob("*.npz")))
    return model, torch.from_numpy(stored["mel"]), torch.from_numpy(stored["wav"]).flatten()


def test_published_weights_through_the_kernels(published, monkeypatch):
    """The start of the clip, and the frames it depends on."""
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    model, mel, wav = published
    frames = 4
    cut = mel[:, : frames + model.context.future]
    audio = model.mel_to_audio(cut)[: frames * model.hop_length]
    assert snr_db(audio, wav[: len(audio)]) >= 90


@pytest.fixture(scope="module")
def speech(recordings, published) -> list[Tensor]:
    """Log-mels (n_mels, T) of eight recordings at the published rate, 2 s each."""
    soundfile = pytest.importorskip("soundfile")
    config = MelConfig(sample_rate=22050, n_mels=80)
    found = []
    for path in sorted((recordings / "ljspeech").iterdir())[:8]:
        audio, rate = soundfile.read(path, dtype="float32", frames=2 * 22050)
        assert rate == 22050
        found.append(log_mel(torch.from_numpy(audio), config))
    return found


def test_speech_is_as_near_to_float64_as_pytorch(published, speech):
    """On average over the clips, overall and in the worst window: in one near silent window either
    of two equally good results is better by 10 dB, by chance."""
    model = published[0]
    slow = reference.HiFiGANVocoder(**model.config).eval()
    slow.load_state_dict(model.state_dict())
    wide, rows = in_float64(slow), []
    with torch.no_grad():
        for mel in speech:
            right = wide(mel[None].double())
            for audio in (model(mel[None]), slow(mel[None])):
                rows.append((snr_db(audio, right), worst_window_db(audio, right)))
    ours, theirs = torch.tensor(rows).view(-1, 2, 2).mean(0)
    assert (ours >= theirs - 3).all()


def exact_audio(model: nn.Module, mel: Tensor) -> Tensor:
    with torch.no_grad():
        return in_float64(model)(mel.double())


@pytest.mark.parametrize("size", [1, 2, 3, 7, None], ids=str)
def test_streams_of_speech_are_what_offline_gives(published, speech, size):
    """Random chunks where there is no size; no difference beyond float32's own error."""
    model = published[0].prepare()
    for mel in speech[:3]:
        mel = mel[None]
        with torch.no_grad():
            offline = model(mel)
        sizes = size or torch.randint(0, 30, (200,)).tolist()
        chunks = mel.split(sizes, 2) if size else random_chunks(mel, sizes)
        online = torch.cat(list(model.stream(chunks)), 1)
        assert online.shape == offline.shape
        own_error = (offline - exact_audio(model, mel)).abs().max()
        assert float((online - offline).abs().max()) <= float(own_error)


def random_chunks(mel: Tensor, sizes: list[int]) -> list[Tensor]:
    starts = np.minimum(np.cumsum([0, *sizes]), mel.shape[2])
    return [mel[:, :, a:b] for a, b in zip(starts, [*starts[1:], mel.shape[2]], strict=True)]


@pytest.mark.parametrize("mode", ["training", "inference", "prepared"])
def test_speech_in_batches_is_what_each_clip_gives(published, speech, mode):
    """To the bit, and so within its float32 error."""
    model = fast_twin(published[0])
    if mode == "prepared":
        model.prepare()
    frames = min(mel.shape[1] for mel in speech)
    lengths = [frames, frames // 2, 1, frames - 1, 99, 20, frames, 7]
    batch = torch.stack([mel[:, :frames] for mel in speech])
    with torch.set_grad_enabled(mode == "training"):
        together = model(batch, lengths)
        for mel, length, audio in zip(batch, lengths, together, strict=True):
            hops = length * model.hop_length
            assert torch.equal(audio[:hops], model(mel[None, :, :length])[0])
            assert not audio[hops:].any()


# Training


def trained(
    backend, steps: int, nudge: int | None = None, **vocoder
) -> tuple[list[float], nn.Module]:
    """Losses of the training loop's steps, and the generator; same seed, same batches.

    `nudge` seeds a change of every weight by one unit in the last place, up or down.
    """
    torch.manual_seed(0)
    config = presets()["smoke"]
    published = {"learning_rate": 2e-4, "discriminator_learning_rate": 2e-4}
    shape = {**config.recipe("vocoder").model, **vocoder}
    config = config.with_recipes(["vocoder"], model=shape, **published)
    stage = VocoderStage(config, backend, CPU)
    stage.begin()
    if nudge is not None:
        torch.manual_seed(nudge)
        with torch.no_grad():
            for p in stage.product.parameters():
                p.copy_(torch.nextafter(p, p + (torch.rand_like(p) - 0.5).sign()))
    data = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        audio = 0.1 * torch.randn(2, config.segment_samples, generator=data)
        batch = {"audio": audio, "mel": log_mel(audio, config.mel)}
        results: dict[str, StepResult] = {}
        for name in stage.passes(step=10**6):
            stage.optimisers[name].zero_grad(set_to_none=True)
            results[name] = stage.loss(name, batch, results)
            results[name].loss.backward()
            stage.optimisers[name].step()
            losses.append(float(results[name].loss.detach()))
    return losses, copy.deepcopy(stage.product)


def moved(model: nn.Module, other: nn.Module) -> Tensor:
    """How far apart all parameters are."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return torch.cat([(a - b).detach().abs().flatten() for a, b in pairs])


@pytest.mark.slow
def test_training_runs_like_the_reference():
    """32 steps: losses within 3 x what one unit in the last place does, parameters within 2e-4."""
    losses, model = trained(reference, 32)
    ours, twin = trained(muomni_fast, 32)
    nudged = [trained(reference, 32, nudge=seed)[0] for seed in range(3)]
    envelope = np.maximum.accumulate(np.abs(np.subtract(nudged, losses)).max(0))
    assert (np.abs(np.subtract(ours, losses)) <= 3 * envelope).all()
    assert float(moved(twin, model).max()) <= 2e-4


def test_three_training_steps_through_interpreted_kernels(monkeypatch):
    """Adam turns the sign of a gradient that is rounding's alone into a whole step: so no more
    weights are far from the reference's than a nudge of one unit in the last place sends there."""
    shape = {"upsample_initial_channel": 16, "resblock_dilation_sizes": ((1,), (3,))}
    losses, model = trained(reference, 3, **shape)
    nudged = [moved(trained(reference, 3, nudge=seed, **shape)[1], model) for seed in range(4)]
    far = max(int((distance > 2e-4).sum()) for distance in nudged)
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    ours, twin = trained(muomni_fast, 3, **shape)
    assert np.allclose(ours, losses, rtol=1e-5)
    distance = moved(twin, model)
    assert int((distance > 2e-4).sum()) <= 3 * far
    assert float(distance.max()) <= 3 * max(float(d.max()) for d in nudged)
