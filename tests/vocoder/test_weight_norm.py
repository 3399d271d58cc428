"""State dicts of normed weights: every form loads into every model, and none past strict
loading."""

import copy

import pytest
import torch
from torch import Tensor, nn

import muomni_fast
from muomni_fast import reference

SIZES = {"n_mels": 8, "upsample_rates": (4, 2), "upsample_kernel_sizes": (8, 4)}
SIZES |= {"upsample_initial_channel": 16}
MEL = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(0))
LIBS = pytest.mark.parametrize("lib", [reference, muomni_fast], ids=["reference", "fast"])
NORMED = pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])


def vocoder(lib, normed: bool) -> nn.Module:
    return lib.HiFiGANVocoder(**SIZES, weight_norm=normed)


def state_of_a_normed_one() -> tuple[dict[str, Tensor], Tensor]:
    """With norms that are not those of `weight_v`; and its audio."""
    model = vocoder(reference, True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("weight_g"):
                parameter *= torch.rand_like(parameter) + 0.5
        return model.state_dict(), model(MEL)


def under_torchs_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"weight_g": "parametrizations.weight.original0"}
    names["weight_v"] = "parametrizations.weight.original1"
    found = {}
    for name, value in state.items():
        front, last = name.rsplit(".", 1)
        found[f"{front}.{names.get(last, last)}"] = value
    return found


def wrapped(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    changes = {
        "plain": lambda name: name,
        "DistributedDataParallel": lambda name: f"module.{name}",
        "compiled": lambda name: f"_orig_mod.{name}",
        "both": lambda name: f"module._orig_mod.{name}",
        "a compiled part": lambda name: name.replace("resblocks.0.", "resblocks.0._orig_mod."),
    }
    return {changes[how](name): value for name, value in state.items()}


@LIBS
@NORMED
@pytest.mark.parametrize("torchs_names", [False, True])
@pytest.mark.parametrize(
    "how", ["plain", "DistributedDataParallel", "compiled", "both", "a compiled part"]
)
def test_names_of_every_wrapper_load(lib, normed, torchs_names, how):
    state, audio = state_of_a_normed_one()
    if torchs_names:
        state = under_torchs_names(state)
    model = vocoder(lib, normed)
    model.load_state_dict(wrapped(state, how))
    with torch.no_grad():
        torch.testing.assert_close(model(MEL), audio, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["DistributedDataParallel", "compiled", "both"])
def test_names_of_every_wrapper_load_into_a_quantizer_and_a_codec(how):
    rvq = muomni_fast.RVQ(n_mels=8)
    other = muomni_fast.RVQ(n_mels=8)
    other.load_state_dict(wrapped(rvq.state_dict(), how))
    assert torch.equal(other.stacked_codebooks(), rvq.stacked_codebooks())
    config = reference.MelConfig(n_mels=8, hop_length=8)
    codecs = [muomni_fast.SpeechCodec(r, vocoder(muomni_fast, False), config) for r in (rvq, other)]
    inner = wrapped(codecs[0].vocoder.state_dict(), how)
    state = {f"rvq.{name}": value for name, value in rvq.state_dict().items()}
    codecs[1].load_state_dict(state | {f"vocoder.{name}": v for name, v in inner.items()})
    with torch.no_grad():
        assert torch.equal(codecs[0].vocoder(MEL), codecs[1].vocoder(MEL))
    both = wrapped(rvq.state_dict(), how) | rvq.state_dict()
    with pytest.raises(RuntimeError, match="expected one of .* got both"):
        other.load_state_dict(both)


DAMAGE = {
    "g a number": ("conv_pre.weight_g", lambda t: t.sum(), "expected shapes"),
    "g along inputs": ("conv_pre.weight_g", lambda t: t.new_ones(1, 8, 1), "expected shapes"),
    "g per tap": ("conv_pre.weight_g", lambda t: t.expand(16, 8, 7), "expected shapes"),
    "v transposed": ("conv_pre.weight_v", lambda t: t.transpose(0, 1), "expected shapes"),
    "g integers": ("ups.0.weight_g", lambda t: t.int(), "floating point"),
    "g complex": ("ups.0.weight_g", lambda t: t.to(torch.complex64), "floating point"),
    "g half": ("ups.0.weight_g", lambda t: t.half(), "floating point"),
    "a filter of zeros": (
        "resblocks.1.convs1.0.weight_v",
        lambda t: t.index_fill(0, torch.tensor([1]), 0),
        "not finite",
    ),
    "g infinite": ("conv_post.weight_g", lambda t: t / 0, "not finite"),
}


@LIBS
@NORMED
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_pair_that_does_not_fit_is_named(lib, normed, damage):
    name, change, message = DAMAGE[damage]
    state, _ = state_of_a_normed_one()
    state[name] = change(state[name])
    expected = f"{name[:-2]}_g, weight_v: .*{message}"
    with pytest.raises(RuntimeError, match=expected):
        vocoder(lib, normed).load_state_dict(state)


@LIBS
@NORMED
def test_all_that_does_not_fit_is_listed(lib, normed):
    state, _ = state_of_a_normed_one()
    state["conv_pre.weight_g"] = state["conv_pre.weight_g"][:3]
    state["ups.1.weight_v"] = state["ups.1.weight_v"].int()
    del state["conv_post.bias"]
    with pytest.raises(RuntimeError) as error:
        vocoder(lib, normed).load_state_dict(state)
    for part in ("conv_pre.weight_g", "ups.1.weight_g", "conv_post.bias"):
        assert part in str(error.value)


@LIBS
@NORMED
@pytest.mark.parametrize("extra", ["weight", "weight_g", "weight_v"])
def test_a_weight_beside_its_norm_is_one_too_many(lib, normed, extra):
    state, _ = state_of_a_normed_one()
    if extra != "weight":
        state = vocoder(reference, False).state_dict()
    state[f"conv_pre.{extra}"] = torch.ones(16, 8, 7)
    with pytest.raises(RuntimeError, match="conv_pre.weight"):
        vocoder(lib, normed).load_state_dict(state)


@LIBS
@NORMED
@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_do_not_load(lib, normed, dtype):
    state = {name: value.to(dtype) for name, value in vocoder(lib, False).state_dict().items()}
    with pytest.raises(RuntimeError, match="expected floating point"):
        vocoder(lib, normed).load_state_dict(state)
    state = {name: value.to(dtype) for name, value in lib.RVQ().state_dict().items()}
    with pytest.raises(RuntimeError, match="expected floating point"):
        lib.RVQ().load_state_dict(state)


@pytest.mark.parametrize(
    "kind", [reference.MultiPeriodDiscriminator, reference.MultiScaleDiscriminator]
)
def test_discriminators_load_weights_without_norms(kind):
    model = kind(channels_scale=0.05)
    audio = torch.randn(1, 400)
    for _ in range(50):  # its singular vectors converge
        model(audio)
    model.eval()
    scores, _ = model(audio)
    plain = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            plain |= {f"{name}.weight": module.weight.detach(), f"{name}.bias": module.bias}
    other = kind(channels_scale=0.05).eval()
    other.load_state_dict(plain)
    for found, expected in zip(other(audio)[0], scores, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
    if kind is reference.MultiScaleDiscriminator:
        plain["discriminators.0.convs.1.weight"] *= 2
        with pytest.raises(RuntimeError, match=r"0.convs.1.weight: .* singular value of 1, got 2"):
            kind(channels_scale=0.05).load_state_dict(plain)


@LIBS
def test_folding_a_copy_leaves_the_original(lib):
    model = vocoder(lib, True)
    before = model(MEL)
    whole = copy.deepcopy(model).fold_weight_norm()
    assert not any(name.endswith("weight_g") for name in whole.state_dict())
    assert torch.equal(whole(MEL), before)
    assert any(name.endswith("weight_g") for name in model.state_dict())


@LIBS
def test_folding_is_whole_or_not_at_all(lib):
    model = vocoder(lib, True)
    with torch.no_grad():
        model.conv_post.weight_v.zero_()
    names = model.state_dict().keys()
    with pytest.raises(ValueError, match="conv_post.weight: .* is not finite"):
        model.fold_weight_norm()
    assert model.state_dict().keys() == names and model.config["weight_norm"]
    with torch.device("meta"):
        folded = vocoder(lib, True).fold_weight_norm()  # no values to look at
    assert folded.state_dict().keys() == vocoder(lib, False).state_dict().keys()


@pytest.mark.long
@LIBS
def test_a_compiled_part_loads_its_own_names_and_others(lib):
    model, plain = vocoder(lib, False), vocoder(lib, False)
    rvq, plain_rvq = lib.RVQ(n_mels=8), lib.RVQ(n_mels=8)
    model.resblocks[0] = torch.compile(model.resblocks[0])
    rvq.proj_in = torch.compile(rvq.proj_in)
    for whole, other in ((model, plain), (rvq, plain_rvq)):
        assert any("_orig_mod" in name for name in whole.state_dict())
        whole.load_state_dict(whole.state_dict())
        whole.load_state_dict(other.state_dict())
        for found, expected in zip(whole.parameters(), other.parameters(), strict=True):
            assert torch.equal(found, expected)
        other.load_state_dict(whole.state_dict())


@pytest.mark.parametrize("name", ["_orig_mod", "module", "module._orig_mod", "conv_pre._orig_mod"])
def test_names_of_wrappers_alone_are_unexpected(name):
    model = vocoder(muomni_fast, False)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(model.state_dict() | {name: torch.zeros(1)})


@pytest.mark.parametrize("how", ["DistributedDataParallel", "compiled", "both"])
def test_names_of_every_wrapper_load_into_every_module(how):
    config = reference.MelConfig(n_mels=8, hop_length=8)
    for make in (
        lambda: muomni_fast.MRF(8, (3, 5), ((1,), (2,))),
        lambda: muomni_fast.ResBlock(8, 3, (1, 2)),
        lambda: reference.MultiPeriodDiscriminator(channels_scale=0.05),
        lambda: reference.MultiScaleDiscriminator(channels_scale=0.05),
        lambda: muomni_fast.SpeechCodec(
            muomni_fast.RVQ(n_mels=8), vocoder(muomni_fast, False), config
        ),
    ):
        first, second = make(), make()
        second.load_state_dict(wrapped(first.state_dict(), how))
        for name, value in second.state_dict().items():
            assert torch.equal(value, first.state_dict()[name]), name


def test_what_subclasses_keep_besides_weights_loads():
    class Counting(muomni_fast.RVQ):
        def __init__(self) -> None:
            super().__init__(n_mels=8)
            self.register_buffer("steps", torch.tensor(3))

    other = Counting()
    other.steps += 1
    model = Counting()
    model.load_state_dict(other.state_dict())
    assert model.steps == 4
    with pytest.raises(RuntimeError, match="proj_in.weight"):
        model.load_state_dict(other.state_dict() | {"proj_in.weight": [1.0]})


@LIBS
@NORMED
@pytest.mark.parametrize("name", ["conv_pre.weight_g", "conv_pre.weight_v", "conv_post.bias"])
def test_what_is_no_tensor_is_named(lib, normed, name):
    state, _ = state_of_a_normed_one()
    with pytest.raises(RuntimeError, match=name):
        vocoder(lib, normed).load_state_dict(state | {name: [1.0]})


def test_spectral_norm_may_fail_or_be_removed():
    model, audio = reference.MultiScaleDiscriminator(channels_scale=0.05), torch.randn(1, 400)
    with pytest.raises(RuntimeError):
        model(audio.double())
    copy.deepcopy(model)
    before = model.eval()(audio)[0]
    for conv in model.discriminators[0].convs:
        nn.utils.remove_spectral_norm(conv)
    for found, expected in zip(model(audio)[0], before, strict=True):
        torch.testing.assert_close(found, expected)


def test_one_of_torchs_names_alone_is_named():
    state = vocoder(reference, False).state_dict()
    name = "conv_pre.parametrizations.weight.original0"
    with pytest.raises(RuntimeError, match=f'Unexpected key.*"{name}"'):
        vocoder(reference, False).load_state_dict(state | {name: torch.zeros(16, 1, 1)})
