"""The vocoder's modules: inputs of every kind, replaced and hooked parts."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.oracle import snr_db
from support.small_vocoders import (
    EXACT,
    TINY,
    TYPE_1,
    assert_same_gradients,
    both_modes,
    every_config,
    fast_of,
    gradients,
    pair,
)
from support.vocoder_problems import keep_variance
from torch import Tensor, nn

import muomni_fast
from muomni_fast import functional, reference
from muomni_fast.reference.audio.mel import MelConfig
from muomni_fast.vocoder import torch_inference


@both_modes
def test_a_mel_that_does_not_fit_is_refused(prepared):
    model = fast_of().eval()
    if prepared:
        model.prepare()
    for shape in ((12, 4), (1, 13, 4), (1, 4, 12), (1, 12, 0), (1, 1, 12, 4)):
        with pytest.raises(ValueError, match=r"mel: expected \(B, 12, T >= 1\), got \("):
            model(torch.zeros(shape))
    for dtype in (torch.int64, torch.bool, torch.float8_e4m3fn):
        with pytest.raises(TypeError, match=f"mel: expected float16.* got {dtype}"):
            model(torch.zeros(1, 12, 4).to(dtype))
    weights = "prepared weights are" if prepared else "a weight is"
    with pytest.raises(TypeError, match=f"mel is torch.float64, but {weights} torch.float32"):
        model(torch.zeros(1, 12, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="mel is on meta, .*weights? is on cpu"):
        model(torch.zeros(1, 12, 4, device="meta"))


def test_blocks_refuse_what_does_not_fit():
    for module in (muomni_fast.ResBlock(4, 3, (1,)), muomni_fast.MRF(4, (3,), ((1,),))):
        for shape in ((4, 9), (1, 5, 9), (1, 4, 0)):
            with pytest.raises(ValueError, match=r"x: expected \(B, 4, T >= 1\), got \("):
                module(torch.zeros(shape))
        for dtype in (torch.int32, torch.float8_e5m2):
            with pytest.raises(TypeError, match=f"x: .*got {dtype}"):
                module(torch.zeros(1, 4, 9).to(dtype))
        with pytest.raises(TypeError, match=r"x is torch.float16, but a weight is torch.float32"):
            module(torch.zeros(1, 4, 9, dtype=torch.float16))
        with pytest.raises(ValueError, match="x is on cpu, a weight is on meta"):
            module.to("meta")(torch.zeros(1, 4, 9))


def test_weights_on_another_device_or_of_several_dtypes_are_refused():
    model, mel = fast_of(), torch.zeros(1, 12, 4)
    model.ups[1].to("meta")
    with pytest.raises(ValueError, match="mel is on cpu, a weight is on meta"):
        model(mel)
    model = fast_of()
    model.resblocks[2].convs2[1].half()
    with pytest.raises(TypeError, match="mel is torch.float32, but a weight is torch.float16"):
        model(mel)


# Inputs of every kind


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_any_view_sounds_like_its_copy(data):
    """Random slices, steps, orders of dimensions, expansions and offsets."""
    model = fast_of(TINY)
    base = torch.randn(*(data.draw(st.integers(3, 9)) for _ in range(3)))
    view = base.permute(data.draw(st.permutations(range(3))))
    view = view[data.draw(st.integers(0, 2)) :: data.draw(st.integers(1, 3))]
    first = data.draw(st.integers(0, view.shape[1] - 3))
    view = view[:, first : first + 3, :: data.draw(st.integers(1, 3))]
    if data.draw(st.booleans()):
        view = view[:, :, :1].expand(-1, -1, 4)
    assert torch.equal(model(view), model(view.clone()))
    with torch.no_grad():
        assert torch.equal(model(view), model(view.clone()))
        assert torch.equal(model.eval().prepare()(view), model(view.clone()))


def test_strides_of_a_single_frame_do_not_change_a_bit():
    """torch chooses a convolution by them; not every draw shows it."""
    model = fast_of(TINY)
    for _ in range(200):
        view = torch.randn(4, 1, 3).permute(0, 2, 1)
        assert torch.equal(model(view.clone()), model(torch.empty(view.shape).copy_(view)))


def test_storage_that_is_not_aligned():
    model, block = fast_of(), muomni_fast.ResBlock(4, 3, (1, 3))
    mel, x = (torch.randn(1 + c * 9)[1:].view(1, c, 9) for c in (12, 4))
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            assert torch.equal(model(mel), model(mel.clone()))
            assert torch.equal(block(x), block(x.clone()))


@both_modes
@every_config
def test_a_batch_of_none(config, prepared):
    model, mel = fast_of(config).eval(), torch.randn(0, config["n_mels"], 6)
    hop = model.hop_length
    for lengths in (None, torch.zeros(0, dtype=torch.int64), []):
        audio = gradients(model, mel, lengths)
        assert audio.pop("input").shape == mel.shape
        assert not any(grad.any() for grad in audio.values())
        with torch.no_grad():
            inference = model.prepare() if prepared else model
            assert inference(mel, lengths).shape == (0, 6 * hop)
        model.train().eval()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_batch_of_none_on_either_backend(monkeypatch, backend):
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", backend)
    x = torch.randn(0, 3, 7)
    mrf = muomni_fast.MRF(3, (3, 5), ((1,), (2,)))
    for module, shape in ((fast_of(TINY), (0, 14)), (mrf, x.shape)):
        found = gradients(module, x)
        assert found.pop("input").shape == x.shape
        assert not any(grad.any() for grad in found.values())
        with torch.no_grad():
            assert module(x).shape == shape


@pytest.mark.parametrize("backend", ["torch", "triton"])
@both_modes
def test_running_out_of_memory_changes_nothing(monkeypatch, backend, prepared):
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", backend)
    model, mel = fast_of(TINY).eval(), torch.randn(1, 3, 9)
    if prepared:
        model.prepare()
    with torch.no_grad():
        before = model(mel)
        with pytest.raises(RuntimeError, match="allocate"):
            model(mel.expand(2**42, 3, 9))  # more than addresses reach
        assert torch.equal(model(mel), before)


@every_config
def test_shorter_than_its_context(config):
    slow, fast = pair(config)
    for frames in (1, 2, 3):
        mel = torch.randn(2, config["n_mels"], frames)
        with torch.no_grad():
            torch.testing.assert_close(fast(mel), slow(mel), **EXACT)
        assert_same_gradients(gradients(slow, mel), gradients(fast, mel), 1e-5)


def test_strips_give_what_the_whole_gives(monkeypatch):
    """Of rows and of items, with halos; a real one only at sizes no test has time for."""
    slow, fast = pair(TYPE_1)
    mel = torch.randn(5, 12, 60)
    with torch.no_grad():
        for strip in (100, 2000, 5000, 20000):
            monkeypatch.setattr(torch_inference, "STRIP", strip)
            for lengths in (None, [60, 1, 0, 33, 59]):
                torch.testing.assert_close(fast(mel, lengths), slow(mel, lengths), **EXACT)


@every_config
@pytest.mark.parametrize("terms", [1, 32, 48])
def test_sums_in_parts_give_what_the_whole_gives(monkeypatch, config, terms):
    """One tap at a time, several, and what is left over; real ones are at wider layers."""
    monkeypatch.setattr(torch_inference, "TERMS", terms)
    slow, fast = pair(config)
    mel = torch.randn(2, config["n_mels"], 20)
    with torch.no_grad():
        torch.testing.assert_close(fast(mel, [20, 9]), slow(mel, [20, 9]), **EXACT)


class Doubled(muomni_fast.ResBlock):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_blocks_that_an_operator_does_not_know_run_one_by_one():
    x, known = torch.randn(2, 4, 9), muomni_fast.ResBlock(4, 3, (1,))
    other = muomni_fast.ResBlock(4, 5, (2,), "2")
    doubled = Doubled(4, 3, (1,))
    mrf = muomni_fast.MRF(4, (3, 3), ((1,), (1,)))
    for blocks in ([nn.Identity()], [known, nn.Identity()], [known, other], [known, doubled]):
        expected = sum(block(x) for block in blocks) / len(blocks)
        mrf.resblocks = nn.ModuleList(blocks)
        assert torch.equal(mrf(x), expected) and torch.equal(functional.mrf(x, blocks), expected)


def test_generators_with_other_modules_inside_run_one_by_one():
    for replace in (
        lambda model: model.resblocks.__setitem__(1, nn.Identity()),
        lambda model: setattr(model, "conv_pre", nn.Sequential(nn.ReLU(), model.conv_pre)),
        lambda model: model.conv_post.register_parameter("bias", None),
    ):
        slow, fast = pair(TYPE_1)
        mel = torch.randn(2, 12, 6)
        for model in (slow, fast):
            replace(model)
        torch.testing.assert_close(fast(mel), slow(mel), **EXACT)


class Twice(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def overridden(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)


REPLACEMENTS = {
    "dilation": lambda m: m.resblocks[0].convs1.__setitem__(
        0, nn.Conv1d(8, 8, 3, padding=5, dilation=5)
    ),
    "padding mode": lambda m: setattr(
        m, "conv_pre", nn.Conv1d(12, 16, 7, padding=3, padding_mode="reflect")
    ),
    "dilated pre": lambda m: setattr(m, "conv_pre", nn.Conv1d(12, 16, 7, padding=6, dilation=2)),
    "groups": lambda m: setattr(m, "conv_pre", nn.Conv1d(12, 16, 7, padding=3, groups=2)),
    "kernel": lambda m: m.resblocks[0].convs1.__setitem__(0, nn.Conv1d(8, 8, 5, padding=2)),
    "named padding": lambda m: setattr(m, "conv_post", nn.Conv1d(4, 1, 7, padding="same")),
    "upsampling": lambda m: m.ups.__setitem__(1, nn.ConvTranspose1d(8, 4, 6, 2, 2)),
    "grouped upsampling": lambda m: m.ups.__setitem__(
        1, nn.ConvTranspose1d(8, 4, 4, 2, 1, groups=2)
    ),
    "longer upsampling": lambda m: m.ups.__setitem__(1, nn.ConvTranspose1d(8, 4, 4, 2)),
    "subclass": lambda m: setattr(m, "conv_pre", Twice(12, 16, 7, padding=3)),
    "forward": lambda m: overridden(m.resblocks[1].convs2[0]),
    "dilations of a block": lambda m: m.resblocks.__setitem__(
        0, type(m.resblocks[0])(8, 3, (1, 3))
    ),
    "taps of a block": lambda m: m.resblocks.__setitem__(1, type(m.resblocks[1])(8, 7, (1, 2))),
    "forward of a block": lambda m: overridden(m.resblocks[1]),
}


@pytest.mark.parametrize("replace", REPLACEMENTS.values(), ids=REPLACEMENTS)
def test_convolutions_that_compute_something_else_run_one_by_one(replace):
    slow, fast = pair(TYPE_1)
    for model in (slow, fast):
        torch.manual_seed(0)
        replace(model)
    mel = torch.randn(2, 12, 20)
    torch.testing.assert_close(fast(mel), slow(mel), **EXACT)
    with pytest.raises(RuntimeError, match="hooked or not HiFi-GAN's own"):
        fast.eval().prepare()


HOOKS = [
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("inner", ["conv_pre", "resblocks.4", "resblocks.1.convs2.0", "conv_post"])
def test_hooks_on_inner_modules_fire(inner, hook):
    model, mel, seen = fast_of(), torch.randn(1, 12, 5).requires_grad_(), []
    audio = model(mel)
    handle = getattr(model.get_submodule(inner), hook)(lambda *args: seen.append(args))
    hooked = model(mel)
    torch.testing.assert_close(hooked, audio, **EXACT)
    hooked.sum().backward()
    assert len(seen) == 1
    handle.remove()
    assert torch.equal(model(mel), audio)


@pytest.mark.long
@pytest.mark.parametrize("inner", ["conv_pre", "resblocks.4", "resblocks.1.convs2.0", ""])
def test_hooks_fire_in_compiled_code(inner):
    model, mel = fast_of(), torch.randn(1, 12, 5)
    model.get_submodule(inner).register_forward_hook(lambda module, args, y: 2 * y)
    with torch.no_grad():
        hooked = model(mel)
        for lengths in ([], [torch.tensor([3])]):
            hooked = model(mel, *lengths)
            compiled = torch.compile(model, backend="eager", fullgraph=not (inner and lengths))
            torch.testing.assert_close(compiled(mel, *lengths), hooked, **EXACT)
        if inner:
            exported = torch.export.export(model, (mel,)).module()
            torch.testing.assert_close(exported(mel), model(mel), **EXACT)


@pytest.mark.parametrize("lib", [reference, muomni_fast], ids=["reference", "fast"])
def test_hooks_on_a_generator_fire_once(lib):
    model = pair(TYPE_1)[lib is muomni_fast]
    model.conv_pre.register_forward_hook(lambda *_: None)
    mel, seen = torch.randn(3, 12, 5), []
    model.register_forward_hook(lambda *args: seen.append(args))
    model(mel, [5, 2, 0])
    assert len(seen) == 1


@pytest.mark.long
def test_compiled_lengths_out_of_range_are_like_the_nearest_that_fit():
    """Where reading them would break the graph, or make a GPU wait."""
    model, mel = fast_of(TINY), torch.randn(3, 3, 6)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        audio = compiled(mel, torch.tensor([-1, 6, 9]))
        assert torch.equal(audio, model(mel, [0, 6, 6]))


@pytest.mark.parametrize("slope", [0.0, 0.3])
@pytest.mark.parametrize("resblock", ["1", "2"])
def test_any_leaky_slope(tmp_path, slope, resblock):
    """On every path without a GPU, with gradients, and through a checkpoint."""
    config = TINY | {"n_mels": 8, "upsample_initial_channel": 16, "resblock": resblock}
    pytest.importorskip("safetensors")
    from muomni_fast.reference.checkpoint import restore, save_model

    plain = keep_variance(reference.HiFiGANVocoder(**config, leaky_slope=slope))
    model = muomni_fast.HiFiGANVocoder(**plain.config)
    model.load_state_dict(plain.state_dict())
    mel = torch.randn(2, 8, 20)
    (plain(mel).square().sum()).backward()
    (model(mel).square().sum()).backward()
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-4)
    save_model(tmp_path / "vocoder.json", "vocoder", plain, MelConfig(n_mels=8, hop_length=8))
    restored, _ = restore(muomni_fast.HiFiGANVocoder, tmp_path / "vocoder.json", "vocoder")
    with torch.no_grad():
        exact = plain.double()(mel.double())
        for found in (model.eval(), copy.deepcopy(model).prepare(), restored):
            assert found.leaky_slope == slope
            assert snr_db(found(mel), exact) > 100
            assert snr_db(torch.cat([*found.stream(mel.split(7, dim=2))], 1), exact) > 100
        block, x = reference.ResBlock(8, 3, (1, 2), resblock, slope), torch.randn(1, 8, 700)
        fast = muomni_fast.ResBlock(8, 3, (1, 2), resblock, slope).eval()
        fast.load_state_dict(block.state_dict())
        torch.testing.assert_close(fast.prepare()(x), block(x))


@pytest.mark.parametrize("lib", [reference, muomni_fast])
@pytest.mark.parametrize("slope", [-0.1, 1, float("nan")])
def test_slopes_out_of_range_are_refused(lib, slope):
    for make in (
        lambda: lib.HiFiGANVocoder(leaky_slope=slope),
        lambda: lib.ResBlock(8, 3, (1,), leaky_slope=slope),
        lambda: lib.MRF(8, (3,), ((1,),), leaky_slope=slope),
    ):
        with pytest.raises(
            ValueError, match="leaky_slope: expected (0 <= leaky_slope < 1|a finite number), got"
        ):
            make()
