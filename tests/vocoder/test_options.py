"""Options of a generator for other families than the published one, on every path."""

import copy

import pytest
import torch
from support.kernel_checks import all_close, assert_close, doubles, with_gradients
from support.oracle import snr_db
from support.small_vocoders import EXACT, assert_same_gradients, gradients
from torch import Tensor, nn
from torch.library import opcheck
from torch.nn import functional as F

import muomni_fast
from muomni_fast import MelConfig, reference
from muomni_fast.reference.errors import CheckpointError
from muomni_fast.vocoder import generator as generators
from muomni_fast.vocoder.plan import plan_of_generator

BASE = dict(
    n_mels=6,
    upsample_rates=(3, 2),
    upsample_kernel_sizes=(7, 4),
    upsample_initial_channel=16,
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 2), (1, 2)),
)
ODD = dict(upsample_rates=(3, 2), upsample_kernel_sizes=(6, 3))
OPTIONS = {
    "no last bias": dict(conv_post_bias=False),
    "slope": dict(leaky_slope=0.2),
    "odd": ODD,
    "clamp": dict(final="clamp"),
    "not final": dict(final=None),
    "all": dict(conv_post_bias=False, leaky_slope=0.3, final="clamp", **ODD),
}
SMALL = dict(
    upsample_rates=(3,),
    upsample_kernel_sizes=(6,),
    upsample_initial_channel=8,
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1,),),
)
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
libs = pytest.mark.parametrize("lib", [reference, muomni_fast], ids=["reference", "fast"])


def of(lib, dtype: torch.dtype = torch.float32, **options) -> reference.HiFiGANVocoder:
    """A generator of the same weights for the same options, under which some audio is above 1."""
    torch.manual_seed(3)
    model = reference.HiFiGANVocoder(**BASE | options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15 if parameter.ndim == 1 else 0.2)
    with torch.no_grad():
        model.conv_post.weight *= 2
    twin = lib.HiFiGANVocoder(**model.config)
    twin.load_state_dict(model.state_dict())
    return twin.to(dtype)


def by_hand(model: reference.HiFiGANVocoder, mel: Tensor) -> Tensor:
    """What the options say, in torch's functions."""
    slope, config = model.config["leaky_slope"], model.config
    x = F.conv1d(mel, model.conv_pre.weight, model.conv_pre.bias, padding=3)
    shapes = zip(config["upsample_rates"], config["upsample_kernel_sizes"], strict=True)
    for level, (rate, kernel) in enumerate(shapes):
        weight, bias = model.ups[level].weight, model.ups[level].bias
        rows = x.shape[2] * rate
        whole = F.conv_transpose1d(F.leaky_relu(x, slope), weight, bias, rate)
        first = (kernel - rate + 1) // 2
        x = whole[..., first : first + rows]
        x = sum(block(x) for block in model._resblocks(level)) / model.n_kernels
    bias = model.conv_post.bias if config["conv_post_bias"] else None
    y = F.conv1d(F.leaky_relu(x, 0.01), model.conv_post.weight, bias, padding=3)[:, 0]
    return {"tanh": torch.tanh, "clamp": lambda y: y.clamp(-1, 1), None: lambda y: y}[
        config["final"]
    ](y)


@libs
@every_option
def test_audio_and_gradients_are_what_the_options_say(lib, options):
    model, plain = of(lib, torch.float64, **options), of(reference, torch.float64, **options)
    mel = torch.randn(2, 6, 9, dtype=torch.float64)
    plain.forward = lambda mel: by_hand(plain, mel)
    audio = model(mel)
    assert audio.shape == (2, 9 * model.hop_length)
    torch.testing.assert_close(audio, plain.forward(mel), rtol=1e-12, atol=1e-12)
    assert_same_gradients(gradients(plain, mel), gradients(model, mel), 1e-10)
    if options.get("final", "tanh") != "tanh":
        beyond = (by_hand(plain, mel).abs() >= 1).double().mean()
        assert 0 < beyond < 1


@every_option
def test_every_path_without_kernels(options):
    plain, fast = of(reference, **options), of(muomni_fast, **options)
    mel, lengths = torch.randn(3, 6, 20), [20, 0, 11]
    assert_same_gradients(gradients(plain, mel, lengths), gradients(fast, mel, lengths), 1e-5)
    with torch.no_grad():
        exact = copy.deepcopy(plain).double()(mel.double())
        for model in (fast, of(muomni_fast, **options).eval().prepare()):
            assert snr_db(model(mel), exact) > 110
            assert_close(model(mel, lengths), plain(mel, lengths).double())
            online = torch.cat([*model.stream(mel.split(7, 2))], 1)
            assert_close(online, model(mel).double())


@every_option
def test_context_is_exactly_what_a_frame_depends_on(options):
    """With nothing cut off that would hide a change."""
    model = of(muomni_fast, torch.float64, **options | {"final": None})
    past, future = model.context.past, model.context.future
    mel = torch.randn(1, 6, past + future + 5, dtype=torch.float64)
    changed = mel.clone()
    changed[:, :, future + 2] += 1
    with torch.no_grad():
        differs = (model(mel) != model(changed)).view(mel.shape[2], -1).any(1).nonzero()
    assert (int(differs.min()), int(differs.max())) == (2, future + 2 + past)


@pytest.mark.parametrize(
    ("rates", "kernels"), [((5, 5, 4, 3), (10, 10, 8, 6)), ((2, 3), (3, 4)), ((2,), (5,))]
)
@libs
def test_an_odd_difference_lengthens_exactly(lib, rates, kernels):
    shape = dict(upsample_rates=rates, upsample_kernel_sizes=kernels)
    model = lib.HiFiGANVocoder(**BASE | shape)
    for frames in (1, 2, 5):
        assert model(torch.randn(2, 6, frames)).shape == (2, frames * model.hop_length)


@pytest.mark.parametrize("mode", ["as it is", "half"])
def test_a_value_at_the_edge_of_a_clamp_has_its_gradient(mode):
    """As torch's; one beyond it has none. Constant audio: the bias alone."""
    dtype = torch.bfloat16 if mode == "half" else torch.float32
    for bias, counts in ((1.0, True), (-1.0, True), (1.5, False), (-1.5, False), (0.5, True)):
        found = []
        for lib in (reference, muomni_fast):
            model = of(lib, dtype, final="clamp")
            with torch.no_grad():
                model.conv_post.weight.zero_()
                model.conv_post.bias.fill_(bias)
            model(torch.randn(1, 6, 2).to(dtype)).sum().backward()
            found.append(float(model.conv_post.bias.grad))
        assert found == [12.0 * counts] * 2


@pytest.mark.long
def test_operators_with_options_pass_opcheck():
    plan, mel = plan_of_generator(of(muomni_fast, **OPTIONS["all"] | SMALL)), torch.randn(2, 6, 4)
    tensors, lengths = [t.detach() for t in plan.tensors()], torch.tensor([4, 2])
    leaves = [t.clone().requires_grad_() for t in tensors]
    opcheck(generators.generator_train, (mel, leaves, lengths, plan.spec))
    audio, kept = generators.generator_train(mel, tensors, lengths, plan.spec)
    needs = [True] * (1 + len(tensors))
    given = audio, audio, mel, kept, tensors, lengths, plan.spec, needs
    opcheck(generators.generator_backward, given, test_utils="test_faketensor")


@pytest.mark.long
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("name", ["all", "not final"])
def test_kernels(monkeypatch, name):
    """Interpreted: audio, gradients, and items as if alone."""
    options = OPTIONS[name] | SMALL
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    fast, exact = of(muomni_fast, **options), of(reference, torch.float64, **options)
    mel = torch.randn(2, 6, 4)
    (m,) = doubles(mel)
    audio = fast(mel.requires_grad_())
    direction = torch.randn_like(audio)
    right = with_gradients(exact(m), direction, m, *exact.parameters())
    all_close(with_gradients(audio, direction.float(), mel, *fast.parameters()), right)
    with torch.no_grad():
        ready = fast.eval().prepare()
        torch.testing.assert_close(ready(mel), audio, **EXACT)
        some = ready(mel, [4, 2])
        assert not some[1, 2 * fast.hop_length :].any()
        torch.testing.assert_close(some[1:, : 2 * fast.hop_length], ready(mel[1:, :, :2]), **EXACT)


# Saved, loaded, refused


def test_options_are_saved_and_checked_on_load(tmp_path):
    pytest.importorskip("safetensors")
    from muomni_fast.reference.checkpoint import restore, save_model

    model, path = of(reference, **OPTIONS["all"]), tmp_path / "vocoder.json"
    assert model.config["final"] == "clamp" and model.config["conv_post_bias"] is False
    assert "conv_post.bias" not in model.state_dict()
    save_model(path, "vocoder", model, MelConfig(n_mels=6, hop_length=6))
    found, _ = restore(muomni_fast.HiFiGANVocoder, path, "vocoder")
    mel = torch.randn(1, 6, 9)
    torch.testing.assert_close(found(mel), model(mel), **EXACT)
    assert found.config == model.config
    path.write_text(path.read_text().replace('"clamp"', '"sine"'))
    with pytest.raises(CheckpointError):
        restore(muomni_fast.HiFiGANVocoder, path, "vocoder")


def test_a_bias_too_many_or_too_few_does_not_load():
    with_bias, without = of(reference), of(reference, conv_post_bias=False)
    for model, other in ((with_bias, without), (without, with_bias)):
        with pytest.raises(RuntimeError, match=r"conv_post\.bias"):
            model.load_state_dict(other.state_dict())


def test_what_an_earlier_version_pickled_has_a_bias_and_a_tanh():
    model = of(muomni_fast)
    mel = torch.randn(1, 6, 4)
    expected = model(mel)
    for name in ("final", "conv_post_bias"):
        del model.config[name]
    del model.__dict__["final"]
    old = copy.deepcopy(model)
    assert torch.equal(old(mel), expected) and plan_of_generator(old).fusible


@libs
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(final="sine"), ValueError, 'final: expected "tanh", "clamp" or None, got \'sine\''),
        (dict(final=1), TypeError, 'final: expected "tanh", "clamp" or None, got 1'),
        (dict(conv_post_bias=0), TypeError, "conv_post_bias: expected True or False, got 0"),
        (ODD | dict(upsample_kernel_sizes=(2, 4)), ValueError, "not negative, got kernel 2 for"),
        (
            dict(upsample_rates=(3, 1), upsample_kernel_sizes=(7, 4)),
            ValueError,
            "expected an odd kernel for rate 1, got kernel 4 for rate 1",
        ),
    ],
)
def test_options_out_of_range_are_refused(lib, arguments, error, message):
    with pytest.raises(error, match=message):
        lib.HiFiGANVocoder(**BASE | arguments)
