"""What the vocoder's modules prepare for inference, and when they drop it."""

import copy
import gc
import pickle
from typing import Any

import pytest
import torch
from support.small_vocoders import EXACT, TINY, TYPE_1, every_block, every_config, fast_of, pair
from support.vocoder_problems import generator, in_float64, keep_variance, snr_db
from torch import Tensor, nn

import muomni_fast
from muomni_fast import reference
from muomni_fast.vocoder import generator as generator_ops
from muomni_fast.vocoder.generator import MANY_FRAMES
from muomni_fast.vocoder.ops import MANY_ROWS

pytestmark = pytest.mark.cpu_rounding


@pytest.mark.parametrize("weight_norm", [False, True], ids=["plain", "normed"])
@every_config
def test_prepared_audio_is_the_same(config, weight_norm):
    model = fast_of(config, weight_norm=weight_norm).eval()
    mel, lengths = torch.randn(3, config["n_mels"], 20), [20, 0, MANY_FRAMES]
    with torch.no_grad():
        audio, cut = model(mel), model(mel, lengths)
        assert model.prepare() is model
        for prepared in (model, copy.deepcopy(model), model.eval(), model.fold_weight_norm()):
            assert prepared._prepared is not None
            assert torch.equal(prepared(mel), audio) and torch.equal(prepared(mel, lengths), cut)
    torch.testing.assert_close(torch.cat([*model.stream(mel.split(2, 2))], 1), audio, **EXACT)
    assert model.state_dict().keys() == reference.HiFiGANVocoder(**config).state_dict().keys()


@pytest.mark.parametrize("backend", ["torch", "triton"])
@every_block
def test_prepared_blocks_give_the_same(monkeypatch, backend, name, shape):
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", backend)
    module = getattr(muomni_fast, name)(*shape).eval()
    x = torch.randn(2, 6, 23 if backend == "triton" else MANY_ROWS)
    with torch.no_grad():
        expected = module(x)
        assert module.prepare() is module
        for prepared in (module, copy.deepcopy(module), module.eval()):
            assert prepared._prepared is not None
            assert torch.equal(prepared(x), expected)


@every_block
def test_blocks_drop_what_they_prepared(name, shape):
    module = getattr(muomni_fast, name)(*shape).eval()
    x = torch.randn(2, 6, 23)
    stale = module.prepare()(x)
    changed = {key: 2 * value for key, value in module.state_dict().items()}
    other = getattr(reference, name)(*shape)
    for change in (
        lambda: module.load_state_dict(changed),
        lambda: module.train().load_state_dict(changed),
        lambda: nn.ModuleList([module]).load_state_dict({f"0.{k}": v for k, v in changed.items()}),
    ):
        module.eval().prepare()
        change()
        assert module._prepared is None and not torch.equal(module(x), stale)
        other.load_state_dict(module.state_dict())
        torch.testing.assert_close(module(x), other(x), **EXACT)
    module.eval().prepare().double()
    torch.testing.assert_close(module(x.double()), other.double()(x.double()), **EXACT)


@every_block
def test_prepared_blocks_refuse_what_does_not_fit(name, shape):
    module = getattr(muomni_fast, name)(*shape).eval().prepare()
    for wrong in ((6, 9), (1, 5, 9), (1, 6, 0)):
        with pytest.raises(ValueError, match=r"x: expected \(B, 6, T >= 1\), got \("):
            module(torch.zeros(wrong))
    with pytest.raises(TypeError, match=r"x is torch.float16, but prepared weights are torch.f"):
        module(torch.zeros(1, 6, 9, dtype=torch.float16))
    with pytest.raises(ValueError, match="x is on meta, weights is on cpu"):
        module(torch.zeros(1, 6, 9, device="meta"))


def test_no_gradient_passes_a_prepared_model(recwarn):
    audio = fast_of().eval().prepare()(torch.randn(1, 12, 4).requires_grad_())
    y = muomni_fast.MRF(6, (3,), ((1,),)).eval().prepare()(torch.randn(1, 6, 4).requires_grad_())
    assert not audio.requires_grad and not y.requires_grad and not recwarn


@pytest.mark.parametrize("change", ["train", "parent trains", "load", "parent loads", "to"])
def test_what_was_prepared_is_dropped_when_weights_may_change(change):
    model, (other, _) = fast_of().eval(), pair(TYPE_1)
    parent, mel = nn.ModuleDict({"vocoder": model}), torch.randn(2, 12, 5)
    stale = model.prepare()(mel)
    if change.endswith("train") or change.endswith("trains"):
        (parent if "parent" in change else model).train()
        with torch.no_grad():
            model.conv_post.weight.mul_(2)
    elif change == "load":
        model.load_state_dict(other.state_dict())
    elif change == "parent loads":
        parent.load_state_dict({f"vocoder.{k}": v for k, v in other.state_dict().items()})
    else:
        parent.to(torch.float64)
    assert model._prepared is None
    other.to(model.conv_pre.weight.dtype).load_state_dict(model.state_dict())
    mel = mel.to(model.conv_pre.weight.dtype)
    torch.testing.assert_close(model(mel), other(mel), **EXACT)
    assert not torch.equal(model(mel), stale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_many_frames_have_the_same_bits_prepared(dtype):
    """From MANY_FRAMES of a call, or of an item with lengths, and MANY_ROWS of blocks."""
    model, half = fast_of().to(dtype).eval(), MANY_FRAMES // 2
    mel = torch.randn(2, 12, MANY_FRAMES, dtype=dtype)
    mrf = muomni_fast.MRF(6, (3, 5), ((1, 2),) * 2).to(dtype).eval()
    x = torch.randn(2, 6, MANY_ROWS // 2, dtype=dtype)
    calls = (
        lambda: model(mel[..., :half]),
        lambda: model(mel[:1]),
        lambda: model(mel, [MANY_FRAMES, 0]),
        lambda: mrf(x),
        lambda: mrf(x.view(1, 6, -1)),
    )
    with torch.no_grad():
        expected = [call() for call in calls]
        model.prepare(), mrf.prepare()
        for call, audio in zip(calls, expected, strict=True):
            assert torch.equal(call(), audio)


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("lengths", [None, [MANY_FRAMES - 1, 7, 1]], ids=["all frames", "lengths"])
def test_few_frames_are_as_near_to_float64_as_the_reference(lengths, amp):
    """Prepared or not, which there is another layout and other rounding; see `prepare`."""
    slow = generator("default", upsample_initial_channel=64)
    fast = muomni_fast.HiFiGANVocoder(upsample_initial_channel=64).eval()
    fast.load_state_dict(slow.state_dict())
    mel = torch.randn(1 if lengths is None else 3, 128, MANY_FRAMES - 1)
    assert_as_near(slow, fast, amp, mel, lengths)


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "autocast"])
def test_few_rows_are_as_near_to_float64_as_the_reference(amp):
    shape = 64, (3, 5, 7), ((1, 2),) * 3
    slow, fast = keep_variance(reference.MRF(*shape)), muomni_fast.MRF(*shape).eval()
    fast.load_state_dict(slow.state_dict())
    x = torch.randn(1, 64, MANY_ROWS - 1)
    # In half precision as in a generator, where autocast's convolution comes before.
    assert_as_near(slow, fast, amp, x.bfloat16() if amp else x)


def assert_as_near(slow: nn.Module, fast: nn.Module, amp: bool, x: Tensor, *rest: Any) -> None:
    """Before and after `prepare`, at most 3 dB below what the reference reaches."""
    with torch.no_grad():
        right = in_float64(slow)(x.double(), *rest)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            floor = snr_db(slow(x, *rest), right) - 3
            for prepared in (fast, copy.deepcopy(fast).prepare()):
                assert snr_db(prepared(x, *rest), right) >= floor


@pytest.mark.long
@pytest.mark.parametrize("lengths", [None, [20, MANY_FRAMES]], ids=["all frames", "lengths"])
def test_autocast_reaches_what_was_prepared(lengths):
    model, mel = fast_of().eval(), torch.randn(2, 12, 20)
    mrf, x = muomni_fast.MRF(6, (3,), ((1,),)).eval(), torch.randn(1, 6, MANY_ROWS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, y = model(mel, lengths), mrf(x)
        model.prepare(), mrf.prepare()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for audio in (model(mel, lengths), model(mel.bfloat16(), lengths), compiled(mel, lengths)):
            assert audio.dtype == torch.bfloat16 and torch.equal(audio, expected)
        assert mrf(x).dtype == torch.bfloat16 and torch.equal(mrf(x), y)


def test_what_another_backend_prepared_is_refused(monkeypatch):
    """As where a prepared model is loaded, or its program runs, without the GPU it was made for."""
    model, mel = fast_of(TINY).eval(), torch.randn(1, 3, 4)
    mrf, x = muomni_fast.MRF(6, (3,), ((1,),)).eval(), torch.randn(1, 6, 9)
    for here, there in (("triton", "torch"), ("torch", "triton")):
        monkeypatch.setenv("MUOMNI_FAST_BACKEND", here)
        model.prepare(), mrf.prepare()
        program = torch.export.export(model, (mel,)).module()
        monkeypatch.setenv("MUOMNI_FAST_BACKEND", there)
        for run, argument in ((model, mel), (program, mel), (mrf, x)):
            with pytest.raises(RuntimeError, match=f"prepared for {here}, but {there} runs here"):
                run(argument)


def change_a_weight(model: nn.Module) -> None:
    with torch.no_grad():
        model.resblocks[1].convs1[0].weight.mul_(2)


def replace_a_weight(model: nn.Module) -> None:
    model.conv_post.bias = nn.Parameter(torch.ones(1))


def replace_a_module(model: nn.Module) -> None:
    model.resblocks[0].convs2[1] = nn.Conv1d(*[model.resblocks[0].channels] * 2, 3, padding=1)


def replace_a_block(model: nn.Module) -> None:
    model.resblocks[2] = nn.Identity()


def hook_a_module(model: nn.Module) -> None:
    model.resblocks[1].convs1[0].register_forward_hook(lambda *_: _[2] * 2)


def override_a_forward(model: nn.Module) -> None:
    conv = model.resblocks[1].convs1[0]
    conv.forward = lambda x: type(conv).forward(conv, x) * 2


def change_a_setting(model: nn.Module) -> None:
    conv = model.resblocks[1].convs1[0]
    conv.dilation, conv.padding = (3,), (3 * (conv.kernel_size[0] // 2),)


def drop_a_bias(model: nn.Module) -> None:
    model.resblocks[1].convs1[0].bias = None


def add_a_convolution(model: nn.Module) -> None:
    block = model.resblocks[1]
    for convolutions in (block.convs1, block.convs2):
        convolutions.append(nn.Conv1d(block.channels, block.channels, 3, padding=1))


def swap_the_memory_of_a_weight(model: nn.Module) -> None:
    model.conv_post.weight.data = 2 * model.conv_post.weight.data


def narrow_a_convolution(model: nn.Module) -> None:
    """To channels that still fit its neighbours: the last level's input."""
    model.ups[1] = nn.ConvTranspose1d(8, 4, 4, 2, 1)


CHANGES = [
    swap_the_memory_of_a_weight,
    narrow_a_convolution,
    drop_a_bias,
    add_a_convolution,
    change_a_weight,
    replace_a_weight,
    replace_a_module,
    replace_a_block,
    hook_a_module,
    override_a_forward,
    change_a_setting,
]


@pytest.mark.parametrize("way", ["prepared", "called before"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_was_prepared_is_never_used_with_other_weights(change, way):
    """Nor a plan with other modules; and with the former ones, what was prepared is used again."""
    (slow, model), mel = pair(TYPE_1), torch.randn(2, 12, 5)
    slow, model = slow.eval(), model.eval()
    before = (model.prepare() if way == "prepared" else model)(mel)
    for module in (slow, model):
        torch.manual_seed(7)
        change(module)
    assert not torch.allclose(model(mel), before)
    torch.testing.assert_close(model(mel), slow(mel), **EXACT)


@pytest.mark.long
def test_a_change_before_compiling_reaches_what_is_compiled():
    (slow, model), mel = pair(TYPE_1), torch.randn(2, 12, 5)
    slow, model = slow.eval(), model.eval().prepare()
    with torch.no_grad():
        for module in (slow, model):
            change_a_weight(module)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(mel), slow(mel), **EXACT)


class Masked(nn.Module):
    """A parametrization that rests on a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def test_buffers_are_weights_too():
    model, mel = fast_of().eval(), torch.randn(2, 12, 5)
    nn.utils.parametrize.register_parametrization(model.conv_pre, "weight", Masked())
    audio = model.prepare()(mel)
    model.conv_pre.parametrizations.weight[0].mask.zero_()
    assert not torch.allclose(model(mel), audio)


def test_a_replica_has_its_own_weights():
    model, mel = fast_of().eval(), torch.randn(2, 12, 5)
    audio = model.prepare()(mel)
    replica = model._replicate_for_data_parallel()
    replica.conv_post = copy.deepcopy(model.conv_post)
    with torch.no_grad():
        replica.conv_post.weight.mul_(2)
        assert not torch.allclose(replica(mel), audio) and torch.equal(model(mel), audio)


def test_hooks_of_every_module_see_prepared_models():
    model, mel, seen = fast_of().eval().prepare(), torch.randn(2, 12, 5), []
    audio = model(mel)
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        torch.testing.assert_close(model(mel), audio, **EXACT)
    finally:
        hook.remove()
    assert model.conv_pre in seen and model.resblocks[0].convs1[0] in seen
    assert torch.equal(model(mel), audio)


class Louder(muomni_fast.HiFiGANVocoder):
    def _generate(self, mel: Tensor, addends: object) -> Tensor:
        return 2 * super()._generate(mel, addends)


def test_a_subclass_that_generates_otherwise_does():
    model, mel = Louder(**TYPE_1).eval(), torch.randn(2, 12, 5)
    plain = muomni_fast.HiFiGANVocoder(**TYPE_1).eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(mel), 2 * plain(mel), **EXACT)
    with pytest.raises(RuntimeError, match="not HiFi-GAN's own"):
        model.prepare()


def test_activations_are_released_while_generating():
    """Of every level only what the next needs."""
    model, alive = muomni_fast.HiFiGANVocoder(**TYPE_1).eval(), []
    real = generator_ops.torch_inference.post

    def post(x: Tensor, *rest: object) -> Tensor:
        alive.append((len({t.untyped_storage()._cdata for t in activations()}), x))
        return real(x, *rest)

    def activations() -> list[Tensor]:
        return [
            t for t in gc.get_objects() if type(t) is Tensor and t.ndim == 4 and t.shape[0] == 3
        ]

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator_ops.torch_inference, "post", post)
        model(torch.randn(3, 12, 20))
    assert [count for count, _ in alive] == [1]


def test_other_weights_for_one_call_do_not_use_what_was_prepared(caplog):
    (slow, model), mel = pair(TYPE_1), torch.randn(2, 12, 5)
    slow, model = slow.eval(), model.eval().prepare()
    audio, other = model(mel), {name: 2 * p.detach() for name, p in model.named_parameters()}
    call = torch.func.functional_call
    torch.testing.assert_close(call(model, other, (mel,)), call(slow, other, (mel,)), **EXACT)
    assert torch.equal(model(mel), audio)


def test_copies_stay_prepared_and_stale_ones_stay_stale(caplog):
    model, mel = fast_of().eval().prepare(), torch.randn(2, 12, 5)
    with torch.inference_mode():
        inside = copy.deepcopy(model)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), inside):
        assert copied._current() is not None and torch.equal(copied(mel), model(mel))
    change_a_weight(model)
    assert model._current() is None and copy.deepcopy(model)._current() is None
    assert "weights have changed since prepare()" in caplog.text
    assert model.prepare()._current() is not None


def test_preparing_for_training_or_from_nan_is_refused():
    model = fast_of(weight_norm=True)
    with pytest.raises(RuntimeError, match="expected eval mode"):
        model.prepare()
    model.resblocks[3].convs1[1].bias.data[2] = torch.nan
    for module in (model.eval(), model.resblocks[3]):
        with pytest.raises(ValueError, match="not finite"):
            module.prepare()
        assert module._prepared is None


@pytest.mark.parametrize("change", ["replaced", "hooked"])
def test_preparing_what_an_operator_does_not_know_is_refused(change):
    for model in (fast_of().eval(), muomni_fast.MRF(6, (3, 5), ((1,), (2,))).eval()):
        if change == "replaced":
            model.resblocks[1] = nn.Identity()
        else:
            model.resblocks[1].register_forward_hook(print)
        with pytest.raises(RuntimeError, match="hooked or not HiFi-GAN's own"):
            model.prepare()
        assert model._prepared is None


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_weights_that_are_added_are_a_change(kind, caplog):
    """Also to modules that had none."""
    model = fast_of().eval().prepare()
    mel = torch.randn(1, model.n_mels, 5)
    model(mel)
    assert "weights have changed" not in caplog.text
    if kind == "parameter":
        model.resblocks[0].register_parameter("scale", nn.Parameter(torch.ones(1)))
    else:
        model.resblocks.register_buffer("scale", torch.ones(1))
    model(mel)
    assert "weights have changed" in caplog.text
