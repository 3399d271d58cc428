"""What is peculiar to micro-Omni's codec, and the discriminators that it and HiFi-GAN have."""

import copy

import numpy as np
import pytest
import torch
from support import peers
from support.families import same, snr
from support.micro_omni import GriffinLimVocoder, HiFiGANVocoder, LaterVocoder
from support.models import normed
from torch import Tensor, nn

import muomni_fast
from muomni_fast.compat.adapter import adapter_of


@pytest.mark.parametrize("make", [HiFiGANVocoder, LaterVocoder, peers.vocoder])
def test_layouts_lengths_and_mels_of_one_value(make):
    """Versions differ in what they make of a mel of one value, and of one that is no batch."""
    model = make().eval()
    assert muomni_fast.accelerate(model).swapped
    own = type(model).forward
    mel = torch.randn(2, 6, 9)
    flat = [torch.full((1, 6, 9), value) for value in (-3.0, 0.4, 3.0)]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for x in (mel, mel.transpose(1, 2), mel[0], mel[0].t(), *flat):
            for length in (None, 50, 72, 100):
                expected = own(model, x, length)
                same([model(x, length), twin(x, length)], [expected] * 2)


def test_batches_of_codes_decode():
    """Their own `decode` takes time for codebooks."""
    rvq = peers.quantizer().eval()
    muomni_fast.accelerate(rvq, slower=True)
    with torch.no_grad():
        codes = rvq.encode(torch.randn(3, 2, rvq.proj_in.in_features))
        each = torch.stack([type(rvq).decode(rvq, own) for own in codes])
        same([rvq.decode(codes)], [each])


def test_the_neural_vocoder_runs_what_it_holds():
    neural = peers.micro_omnis("NeuralVocoder")()
    neural.vocoder = peers.vocoder()  # a small one
    (found,) = muomni_fast.accelerate(neural).swapped
    assert (found.name, found.methods) == ("vocoder", ("forward",))
    mels = [np.random.default_rng(0).random(shape).astype(np.float32) for shape in ((6, 9), (9, 6))]
    ours = [neural.mel_to_audio(mel) for mel in mels]
    assert adapter_of(neural.vocoder)._kept[1]
    assert muomni_fast.restore(neural) is neural and adapter_of(neural.vocoder) is None
    for mel, audio in zip(mels, ours, strict=True):
        theirs = neural.mel_to_audio(mel)
        assert isinstance(audio, np.ndarray)
        assert (audio.shape, audio.dtype) == (theirs.shape, theirs.dtype)
        assert snr(torch.from_numpy(audio), torch.from_numpy(theirs)) >= 105


def test_griffin_lim_stays_as_it_is():
    neural = peers.micro_omnis("NeuralVocoder")()
    neural.vocoder = GriffinLimVocoder()
    (found,) = muomni_fast.accelerate(neural).skipped
    assert found.name == "vocoder" and "has no weights" in found.reason
    assert muomni_fast.restore(neural) is neural


def judged(model: nn.Module, audio: Tensor) -> list[Tensor]:
    """All a discriminator gives, and the gradients of a loss on it."""
    outputs, maps = model(audio)
    results = [*outputs, *(each for own in maps for each in own)]
    weights = [*model.parameters()]
    loss = sum(result.square().mean() for result in results)
    return [*results, *torch.autograd.grad(loss, [audio, *weights])]


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "normed"])
def test_period_discriminators_train_alike(norm):
    """Also where hooks compute the weights, which they then do before every call."""
    model = peers.micro_omnis("MultiPeriodDiscriminator")([2, 3])
    model = normed(model) if norm else model
    twin = peers.micro_omnis("MultiPeriodDiscriminator")([2, 3])
    twin = normed(twin) if norm else twin
    twin.load_state_dict(model.state_dict())
    report = muomni_fast.accelerate(model)
    assert [found.name for found in report.swapped] == ["discriminators.0", "discriminators.1"]
    assert not report.skipped and muomni_fast.accelerate(model).swapped == report.swapped
    audio = torch.randn(2, 1, 101, requires_grad=True)
    optimisers = [torch.optim.SGD(each.parameters(), 0.1) for each in (model, twin)]
    for _ in range(2):
        ours, theirs = judged(model, audio), judged(twin, audio)
        same(ours, theirs, least=100)  # a gradient sums far more than audio does
        for each, optimiser, found in zip((model, twin), optimisers, (ours, theirs), strict=True):
            for parameter, grad in zip(
                each.parameters(), found[-len([*each.parameters()]) :], strict=True
            ):
                parameter.grad = grad
            optimiser.step()
    assert muomni_fast.restore(model) is model
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_column_convolutions_are_as_near_to_float64():
    conv = peers.micro_omnis("DiscriminatorP")(3).convs[1]
    model = nn.Sequential(conv)
    x = torch.randn(2, conv.in_channels, 40, 3)
    exact = copy.deepcopy(conv).double()(x.double())
    theirs = conv(x)
    discriminator = peers.micro_omnis("DiscriminatorP")(3)
    discriminator.convs[1] = conv
    muomni_fast.accelerate(discriminator)
    ours = model(x)
    assert adapter_of(conv) is not None
    assert snr(ours, exact) >= min(snr(theirs, exact), 200) - 3


def test_a_period_discriminator_runs_ours(monkeypatch):
    model = peers.micro_omnis("DiscriminatorP")(3)
    muomni_fast.accelerate(model)
    monkeypatch.setattr(nn.Conv2d, "forward", lambda *_: pytest.fail("their code runs"))
    model(torch.randn(1, 1, 60))


def test_discriminators_that_stay_as_they_are_say_why():
    scales = peers.micro_omnis("MultiScaleDiscriminator")()
    report = muomni_fast.accelerate(scales, slower=True)
    assert not report.swapped and len(report.skipped) == len(scales.discriminators)
    assert {found.reason for found in report.skipped} == {
        "nothing here was measured to be faster than its own convolutions"
    }
    wide = peers.micro_omnis("DiscriminatorP")(3)
    wide.conv_post = nn.Conv2d(wide.conv_post.in_channels, 1, (3, 3), 1, (1, 1))
    assert "one column wide" in muomni_fast.accelerate(wide).skipped[0].reason
    assert not any(adapter_of(module) for module in wide.modules())
    with torch.device("meta"):
        elsewhere = peers.micro_omnis("DiscriminatorP")(3)
    assert "CPU only" in muomni_fast.accelerate(elsewhere).skipped[0].reason
    long = peers.micro_omnis("DiscriminatorP")(11)
    assert "at period 11" in muomni_fast.accelerate(long).skipped[0].reason
    assert muomni_fast.accelerate(long, slower=True).swapped
    ours = muomni_fast.MultiPeriodDiscriminator()
    assert muomni_fast.accelerate(ours).found == ()
