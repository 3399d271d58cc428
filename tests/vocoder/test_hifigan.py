"""Generator, residual blocks, discriminators: published weights, names, sizes, formulas."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from support.oracle import snr_db
from torch.nn import functional as F

import muomni_fast
from muomni_fast import MelConfig, MultiPeriodDiscriminator, MultiScaleDiscriminator, reference
from muomni_fast.reference.errors import CheckpointError
from muomni_fast.reference.training import losses
from muomni_fast.reference.vocoder.hifigan import PRESETS

SMALL = dict(upsample_initial_channel=32)


@pytest.fixture(params=[reference, muomni_fast], ids=["reference", "fast"])
def lib(request: pytest.FixtureRequest):
    return request.param


def test_published_v2_gives_its_stored_waveform(lib, weights):
    folder = weights / "hifigan_LJ_V2"
    model = lib.HiFiGANVocoder.from_hifigan(folder / "config.json", folder / "generator_v2")
    stored = np.load(next((folder / "reference").glob("*.npz")))
    audio = model.mel_to_audio(stored["mel"])
    expected = torch.from_numpy(stored["wav"]).flatten()
    assert audio.shape == expected.shape
    assert snr_db(audio, expected) >= 90
    config = MelConfig.from_hifigan(folder / "config.json")
    assert config == MelConfig(sample_rate=22050, n_mels=80)
    assert not model.config["weight_norm"]


def test_published_v2_keeps_its_keys_under_weight_norm(weights):
    published = torch.load(
        weights / "hifigan_LJ_V2" / "generator_v2", map_location="cpu", weights_only=True
    )["generator"]
    model = reference.HiFiGANVocoder(**PRESETS["v2"], weight_norm=True)
    assert set(model.state_dict()) == set(published)
    model.load_state_dict(published)
    assert all(torch.equal(value, published[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("preset", "millions"), [("v1", 13.92), ("v2", 0.92), ("v3", 1.46)])
def test_presets_have_the_published_sizes(preset, millions):
    with torch.device("meta"):
        model = reference.HiFiGANVocoder(**PRESETS[preset])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("weight_norm", [False, True])
def test_lengths_and_range(lib, weight_norm):
    model = lib.HiFiGANVocoder(**SMALL, weight_norm=weight_norm)
    for frames in (1, 2, 7):
        audio = model(torch.randn(2, 128, frames) * 5)
        assert audio.shape == (2, frames * 256) and audio.abs().max() <= 1
    assert model.hop_length == 256
    assert model.mel_to_audio(np.zeros((128, 3), dtype=np.float32)).shape == (768,)


def test_output_does_not_depend_on_batch_mates_or_axes_sizes(lib):
    """No min-max over the batch, and (B, n_mels, T) is never mistaken for its transpose."""
    model = lib.HiFiGANVocoder(**SMALL)
    mel = torch.randn(1, 128, 6)
    batch = model(torch.cat([mel, 100 * torch.randn(1, 128, 6)]))
    torch.testing.assert_close(batch[:1], model(mel), rtol=0, atol=1e-6)
    assert model(torch.randn(1, 128, 128)).shape == (1, 128 * 256)


def test_weight_norm_changes_keys_and_nothing_else(lib):
    mel = torch.randn(1, 128, 5)
    normed, plain = lib.HiFiGANVocoder(**SMALL, weight_norm=True), lib.HiFiGANVocoder(**SMALL)
    keys = set(normed.state_dict())
    assert {"conv_pre.weight_g", "ups.0.weight_v", "resblocks.11.convs2.1.weight_g"} <= keys
    assert not any("parametrizations" in key for key in keys)
    plain.load_state_dict(normed.state_dict())
    torch.testing.assert_close(plain(mel), normed(mel), rtol=0, atol=1e-6)
    again = lib.HiFiGANVocoder(**SMALL, weight_norm=True)
    again.load_state_dict(plain.state_dict())
    torch.testing.assert_close(again(mel), plain(mel), rtol=0, atol=1e-6)
    before = normed(mel)
    folded = copy.deepcopy(normed).fold_weight_norm()
    assert set(folded.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(folded(mel), before, rtol=0, atol=1e-6)
    assert torch.equal(normed(mel), before)  # folding a copy leaves the original alone


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_folding_keeps_parameters_in_every_mode(lib, mode):
    model = lib.HiFiGANVocoder(**SMALL, weight_norm=True)
    with mode():
        model.fold_weight_norm()
    assert dict(model.named_parameters()).keys() == lib.HiFiGANVocoder(**SMALL).state_dict().keys()
    model.load_state_dict(lib.HiFiGANVocoder(**SMALL).state_dict())
    model(torch.randn(1, 128, 2)).sum().backward()


def test_weights_that_are_not_finite_do_not_load(lib):
    model = lib.HiFiGANVocoder(**SMALL)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["ups.1.bias"][2] = torch.inf
    with pytest.raises(RuntimeError, match=r"ups\.1\.bias holds a value that is not finite"):
        model.load_state_dict(state)
    assert all(p.isfinite().all() for p in model.parameters())


def test_state_dicts_are_interchangeable():
    slow, fast = reference.HiFiGANVocoder(**SMALL), muomni_fast.HiFiGANVocoder(**SMALL)
    fast.load_state_dict(slow.state_dict())
    mel = torch.randn(1, 128, 4)
    assert torch.equal(fast(mel), slow(mel))


def test_resblock_formulas(lib):
    x = torch.randn(2, 4, 30)
    one = lib.ResBlock(4, 5, (1, 3), "1")
    expected = x
    for i, d in enumerate((1, 3)):
        a, b = one.convs1[i], one.convs2[i]
        inner = F.conv1d(F.leaky_relu(expected, 0.1), a.weight, a.bias, padding=2 * d, dilation=d)
        expected = expected + F.conv1d(F.leaky_relu(inner, 0.1), b.weight, b.bias, padding=2)
    torch.testing.assert_close(one(x), expected)
    two = lib.ResBlock(4, 3, (2, 6), "2")
    expected = x
    for conv, d in zip(two.convs, (2, 6), strict=True):
        step = F.conv1d(F.leaky_relu(expected, 0.1), conv.weight, conv.bias, padding=d, dilation=d)
        expected = expected + step
    torch.testing.assert_close(two(x), expected)


def test_mrf_is_the_mean_of_its_blocks(lib):
    x, mrf = torch.randn(1, 4, 20), lib.MRF(4, (3, 5, 7), ((1, 2),) * 3)
    expected = torch.stack([block(x) for block in mrf.resblocks]).mean(0)
    torch.testing.assert_close(mrf(x), expected)


def test_last_leaky_slope_is_the_published_one(lib):
    model = lib.HiFiGANVocoder(
        n_mels=4, upsample_rates=(2,), upsample_kernel_sizes=(4,), upsample_initial_channel=4
    )
    seen = {}
    model.conv_post.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    before_post = {}
    hooks = [
        b.register_forward_hook(lambda m, _, out: before_post.update({m: out}))
        for b in model.resblocks
    ]
    model(torch.randn(1, 4, 9))
    expected = F.leaky_relu(sum(before_post.values()) / len(hooks), 0.01)
    torch.testing.assert_close(seen["x"], expected)


def test_gradients_reach_every_parameter(lib):
    model = lib.HiFiGANVocoder(**SMALL, weight_norm=True)
    model(torch.randn(1, 128, 4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.long
def test_compiles_without_graph_breaks(lib):
    model, mel = lib.HiFiGANVocoder(**SMALL).eval(), torch.randn(1, 128, 5)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(mel), model(mel))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(upsample_rates=(8, 8)), "upsample_rates has 2, upsample_kernel_sizes has 4"),
        (dict(upsample_rates=(8, 8, 2, 1)), "an odd kernel for rate 1, got kernel 4 for rate 1"),
        (dict(upsample_kernel_sizes=(4, 16, 4, 4)), "kernel 4 for rate 8"),
        (dict(upsample_initial_channel=100), "multiple of 16, got 100"),
        (dict(resblock="3"), "resblock.*'3'"),
        (dict(resblock_kernel_sizes=(3, 4, 7)), "kernel_size.*4"),
        (dict(resblock_kernel_sizes=(3, 5)), "resblock_kernel_sizes has 2"),
        (dict(resblock_dilation_sizes=((1, 0), (1,), (1,))), r"dilations.*\(1, 0\)"),
    ],
)
def test_constructor_refuses(lib, arguments, message):
    with pytest.raises(ValueError, match=message):
        lib.HiFiGANVocoder(**arguments)


def test_forward_refuses(lib):
    model = lib.HiFiGANVocoder(**SMALL)
    for shape in ((1, 80, 4), (128, 4), (1, 128, 0), (1, 4, 128)):
        with pytest.raises(ValueError, match=r"\(B, 128, T >= 1\), got"):
            model(torch.zeros(shape))
    with pytest.raises(TypeError, match="int64"):
        model(torch.zeros(1, 128, 4, dtype=torch.int64))


def test_blocks_refuse(lib):
    for module in (lib.ResBlock(4, 3, (1,)), lib.MRF(4, (3,), ((1,),))):
        with pytest.raises(ValueError, match=r"x: expected \(B, 4, T >= 1\), got \(1, 5, 6\)"):
            module(torch.zeros(1, 5, 6))
        with pytest.raises(TypeError, match="x: .*int64"):
            module(torch.zeros(1, 4, 6, dtype=torch.int64))


def test_batches_of_no_frames_have_gradients_of_zero(lib):
    model, mel = lib.HiFiGANVocoder(**SMALL), torch.full((2, 128, 4), torch.nan)
    model(mel, [0, 0]).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, 128, 4), [0, 3]).dtype == torch.bfloat16


def test_hifigan_configs_that_lack_something_are_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"num_mels": 80}')
    with pytest.raises(CheckpointError, match=r"config\.json: lacks upsample_rates, "):
        reference.HiFiGANVocoder.from_hifigan(path, "unused")
    with pytest.raises(CheckpointError, match=r"config\.json: lacks sampling_rate, n_fft"):
        MelConfig.from_hifigan(path)
    path.write_text("[1]")
    with pytest.raises(CheckpointError, match=r"config\.json: not a HiFi-GAN config"):
        MelConfig.from_hifigan(path)
    path.write_bytes(b"\x80\x02" * 1000)
    with pytest.raises(
        CheckpointError, match=r"config\.json: not a HiFi-GAN config, it is not text$"
    ):
        MelConfig.from_hifigan(path)


def test_from_hifigan_refuses_a_hop_that_is_not_the_product(tmp_path, weights):
    folder = weights / "hifigan_LJ_V2"
    config = json.loads((folder / "config.json").read_text())
    config["hop_size"] = 300
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json.*256.*300"):
        reference.HiFiGANVocoder.from_hifigan(tmp_path / "config.json", folder / "generator_v2")
    with pytest.raises(CheckpointError, match="generator_v9"):
        reference.HiFiGANVocoder.from_hifigan(folder / "config.json", folder / "generator_v9")


def test_folded_weights_are_finite(lib):
    """A filter of zeros has no direction, and 0 / 0 would be heard."""
    model = lib.HiFiGANVocoder(**SMALL, weight_norm=True)
    with torch.no_grad():
        model.ups[1].weight_v[0] = 0
    with pytest.raises(ValueError, match=r"ups\.1\.weight: .* is not finite"):
        model.fold_weight_norm()


def test_filters_of_zeros_can_be_normed(lib):
    plain = lib.HiFiGANVocoder(**SMALL)
    with torch.no_grad():
        plain.conv_pre.weight[0] = 0
    model = lib.HiFiGANVocoder(**SMALL, weight_norm=True)
    model.load_state_dict(plain.state_dict())
    assert torch.equal(model.conv_pre.weight[0], plain.conv_pre.weight[0])
    back = lib.HiFiGANVocoder(**SMALL)
    back.load_state_dict(model.state_dict())
    torch.testing.assert_close(back.conv_pre.weight, plain.conv_pre.weight)


# Discriminators and losses


def test_discriminators_have_the_published_layers_and_names():
    with torch.device("meta"):
        mpd = MultiPeriodDiscriminator((2, 3, 5, 7, 11)).state_dict()
        msd = MultiScaleDiscriminator(3).state_dict()
    widths = [1, 32, 128, 512, 1024, 1024]
    for period in range(5):
        for i in range(5):
            v = mpd[f"discriminators.{period}.convs.{i}.weight_v"]
            assert v.shape == (widths[i + 1], widths[i], 5, 1)
        assert mpd[f"discriminators.{period}.conv_post.weight_g"].shape == (1, 1, 1, 1)
    shapes = [(128, 1, 15), (128, 32, 41), (256, 8, 41), (512, 16, 41), (1024, 32, 41)]
    shapes += [(1024, 64, 41), (1024, 1024, 5)]
    for i, shape in enumerate(shapes):
        assert msd[f"discriminators.0.convs.{i}.weight_orig"].shape == shape  # spectral norm
        assert msd[f"discriminators.2.convs.{i}.weight_v"].shape == shape
    assert msd["discriminators.1.conv_post.weight_v"].shape == (1, 1024, 3)


@pytest.mark.parametrize("length", [8192, 1000, 331])
@pytest.mark.parametrize("kind", [MultiPeriodDiscriminator, MultiScaleDiscriminator])
def test_discriminators_judge_any_length(kind, length):
    scores, features = kind(channels_scale=1 / 16)(torch.randn(2, length))
    assert len(scores) == len(features) == (3 if kind is MultiPeriodDiscriminator else 2)
    assert all(s.shape[0] == 2 and s.ndim == 2 for s in scores)
    assert all(len(maps) == (6 if kind is MultiPeriodDiscriminator else 8) for maps in features)
    with pytest.raises(ValueError, match=r"\(B, L\)"):
        kind(channels_scale=1 / 16)(torch.randn(length))


def test_periods_fold_equally_spaced_samples_side_by_side():
    d = MultiPeriodDiscriminator((3,), 1 / 16)
    seen = {}
    d.discriminators[0].convs[0].register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    audio = torch.arange(8.0)[None]
    d(audio)
    padded = F.pad(audio[:, None], (0, 1), mode="reflect")
    assert torch.equal(seen["x"], padded.view(1, 1, 3, 3))


def test_losses_are_sums_over_discriminators():
    """Averages, as in the system this replaces, would change every published weight."""
    real = [torch.full((2, 5), 0.5), torch.full((2, 3), 2.0)]
    fake = [torch.full((2, 5), 0.25), torch.full((2, 3), -1.0)]
    expected = (0.25 + 0.0625) + (1.0 + 1.0)
    assert math.isclose(float(losses.discriminator_loss(real, fake)), expected)
    assert math.isclose(float(losses.generator_loss(fake)), 0.75**2 + 4.0)
    assert math.isclose(float(losses.feature_matching_loss([real], [fake])), 0.25 + 3.0)
    assert (losses.FEATURE_MATCHING_WEIGHT, losses.MEL_WEIGHT) == (2.0, 45.0)
