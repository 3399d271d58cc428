"""Modules in people's hands: every module, in every state, survives what stacks do to modules."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.ranks import on_two_ranks, outputs, sharded_weights, tensors, trained_and_sent
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.nn.utils import parametrize

import muomni_fast
from muomni_fast import reference
from muomni_fast.reference.training.codebook_health import CodebookHealth, start_from_data

VOCODER = {"n_mels": 8, "upsample_rates": (4, 2), "upsample_kernel_sizes": (8, 4)}
VOCODER |= {"upsample_initial_channel": 16}
FRAMES = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
MEL = FRAMES.T[None]
AUDIO = FRAMES.flatten()[None]


def trained(module: nn.Module, x: Tensor) -> nn.Module:
    """After a step."""
    optimiser = torch.optim.AdamW(module.parameters(), 1e-3)
    sum(t.sum() for t in tensors(module.train()(x))).backward()
    optimiser.step()
    return module


def loaded(make: Callable[[], nn.Module]) -> nn.Module:
    module = make()
    module.load_state_dict(make().state_dict())
    return module


MAKERS = {
    "rvq": (lambda lib: lib.RVQ(2, 8, 4, 8), FRAMES),
    "vocoder": (lambda lib: lib.HiFiGANVocoder(**VOCODER), MEL),
    "vocoder normed": (lambda lib: lib.HiFiGANVocoder(**VOCODER, weight_norm=True), MEL),
    "resblock": (lambda lib: lib.ResBlock(8, 3, (1, 2)), MEL),
    "mrf": (lambda lib: lib.MRF(8, (3, 5), ((1, 2), (1, 3)), "2"), MEL),
    "periods": (lambda lib: reference.MultiPeriodDiscriminator(channels_scale=0.05), AUDIO),
    "scales": (lambda lib: reference.MultiScaleDiscriminator(channels_scale=0.05), AUDIO),
    "griffin-lim": (
        lambda lib: lib.GriffinLimVocoder(reference.MelConfig(n_mels=8), n_iter=1),
        MEL,
    ),
}
STATES: dict[str, Callable[[Callable[[], nn.Module], Tensor], nn.Module]] = {
    "fresh": lambda make, x: make(),
    "trained": lambda make, x: trained(make(), x),
    "loaded": lambda make, x: loaded(make),
    "folded": lambda make, x: make().fold_weight_norm(),
    "trained and folded": lambda make, x: trained(make(), x).fold_weight_norm(),
    "prepared": lambda make, x: make().eval().prepare(),
}


def in_every_state() -> Iterator[object]:
    for lib in (reference, muomni_fast):
        for name, (make, x) in MAKERS.items():
            for state, change in STATES.items():
                learns = name != "griffin-lim" or state == "fresh"
                folds = "folded" not in state or name == "vocoder normed"
                runs = name not in ("periods", "scales") or lib is reference
                prepares = state != "prepared" or (lib is muomni_fast and runs)
                if learns and folds and runs and prepares:
                    kind = lib.__name__.rpartition(".")[2]
                    of = lambda make=make, lib=lib: make(lib)
                    yield pytest.param(of, change, x, id=f"{kind}-{name}-{state}")


def saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def checkpointed(module: nn.Module, folder: str) -> nn.Module:
    """Its weights through torch.distributed.checkpoint."""
    if not module.state_dict():
        return module
    state = get_model_state_dict(module)
    assert state.keys() == module.state_dict().keys()
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    found = {name: torch.zeros_like(value) for name, value in state.items()}
    dcp.load(found, checkpoint_id=folder, no_dist=True)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    set_model_state_dict(other, found)
    return other.eval().prepare() if getattr(module, "_prepared", None) else other


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("make, change, x", [*in_every_state()])
def test_copies_give_the_same(make, change, x, tmp_path):
    module = change(make, x)
    copies = {
        "deepcopy": copy.deepcopy(module),
        "pickle": pickle.loads(pickle.dumps(module)),
        "pickle of a copy": pickle.loads(pickle.dumps(copy.deepcopy(module))),
        "torch.save": saved(module),
        "distributed checkpoint": checkpointed(module, str(tmp_path)),
    }
    with torch.no_grad():
        expected = tensors(module.eval()(x))
        for how, other in copies.items():
            assert type(other) is type(module), how
            assert other.state_dict().keys() == module.state_dict().keys(), how
            for found, value in zip(tensors(other.eval()(x)), expected, strict=True):
                assert torch.equal(found, value), how


@pytest.mark.parametrize("make, change, x", [*in_every_state()])
def test_functional_calls_use_the_weights_given(make, change, x):
    module = change(make, x).eval()
    other = make().eval()
    if module.state_dict().keys() != other.state_dict().keys():
        other = other.fold_weight_norm()
    given = other.state_dict()
    with torch.no_grad():
        expected = tensors(other(x))
        found = tensors(torch.func.functional_call(module, given, (x,), strict=True))
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("detached", [False, True])
def test_functional_calls_with_weights_of_another_form_say_so(prepared, detached):
    make, x = MAKERS["vocoder"]
    module = make(muomni_fast).eval()
    if prepared:
        module.prepare()
    before = module(x)
    given = MAKERS["vocoder normed"][0](muomni_fast).state_dict(keep_vars=not detached)
    with pytest.raises(TypeError, match="weight_g: expected weights of a plain model, got normed"):
        torch.func.functional_call(module, given, (x,))
    assert torch.equal(module(x), before)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    "name, inner", [("rvq", "codebooks.0"), ("vocoder", "conv_pre"), ("mrf", "resblocks.1")]
)
def test_weights_loaded_into_a_part_of_a_prepared_module_are_used(name, inner, assign):
    make, x = MAKERS[name]
    module = make(muomni_fast).eval().prepare()
    state = make(muomni_fast).get_submodule(inner).state_dict()
    module.get_submodule(inner).load_state_dict(state, assign=assign)
    plain = make(reference).eval()
    plain.load_state_dict(module.state_dict())
    with torch.no_grad():
        for found, expected in zip(tensors(module(x)), tensors(plain(x)), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        if name == "rvq":
            assert torch.equal(module.encode(x), plain.encode(x))


@pytest.mark.parametrize("lib", [reference, muomni_fast], ids=["reference", "fast"])
def test_parametrised_and_shared_codebooks_are_used(lib):
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    rvq = lib.RVQ(3, 8, 4, 8)
    plain = copy.deepcopy(rvq)
    parametrize.register_parametrization(rvq.codebooks[1], "weight", Doubled())
    rvq.codebooks[2] = rvq.codebooks[0]
    with torch.no_grad():
        plain.codebooks[1].weight *= 2
        plain.codebooks[2].weight.copy_(plain.codebooks[0].weight)
    for found in (rvq, copy.deepcopy(rvq)):
        codes = found.encode(FRAMES)
        assert torch.equal(codes, plain.encode(FRAMES))
        assert torch.equal(found.decode(codes), plain.decode(codes))
        assert torch.equal(found(FRAMES).mel, plain(FRAMES).mel)
    with pytest.raises(TypeError, match=r"codebooks\[1\].weight: expected a parameter"):
        CodebookHealth(rvq, None)
    with pytest.raises(TypeError, match=r"codebooks\[1\].weight: expected a parameter"):
        start_from_data(rvq, FRAMES, torch.Generator())


def test_replicas_use_their_codebooks():
    """What `nn.DataParallel` makes of a module: no parameters, but tensors under their names."""
    rvq = muomni_fast.RVQ(2, 8, 4, 8)
    replica = copy.deepcopy(rvq)
    for inner in replica.modules():
        for name, parameter in [*inner._parameters.items()]:
            if parameter is not None:
                del inner._parameters[name]
                setattr(inner, name, parameter.detach().clone().requires_grad_())
    assert torch.equal(replica.encode(FRAMES), rvq.encode(FRAMES))
    assert torch.equal(replica(FRAMES).mel, rvq(FRAMES).mel)


@pytest.mark.parametrize("name", ["rvq", "vocoder", "vocoder normed", "resblock", "mrf"])
def test_writes_that_no_version_counts_are_used(name):
    """By fused optimisers and through `.data`: at once, or by training what was prepared."""
    make, x = MAKERS[name]
    module, plain = make(muomni_fast).eval(), make(reference).eval()
    output = lambda model: tensors(model(x))[0].detach()

    def require_same(stale: Tensor) -> None:
        plain.load_state_dict(module.state_dict())
        assert not torch.equal(output(module), stale)
        torch.testing.assert_close(output(module), output(plain))

    def write(change: Callable[[Tensor], object]) -> None:
        for parameter in module.parameters():
            change(parameter.data)

    stale = output(module)
    write(lambda data: data.mul_(1.1))
    require_same(stale)
    stale = output(module.prepare())
    module.train()
    write(lambda data: data.mul_(0.9))
    require_same(stale)
    stale = output(module.eval().prepare())
    optimiser = torch.optim.AdamW(module.train().parameters(), 0.05, fused=True)
    tensors(module(x))[0].square().sum().backward()
    optimiser.step()
    require_same(stale)
    module.eval()
    require_same(stale)


@pytest.mark.long
def test_other_processes(tmp_path):
    """Spawned ones are sent modules in every state; two that shard modules by FSDP2 and train them
    have the weights of one alone."""
    modules = [(change(make, x), x) for make, change, x in (p.values for p in in_every_state())]
    expected, alone = outputs(modules), sharded_weights(0)
    found = on_two_ranks(trained_and_sent, tmp_path, modules)
    for _, sent in found:
        for ours, theirs in zip(expected, sent, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)
    whole, _ = found[0]  # whole weights are the first one's
    for name, weights in alone.items():
        for ours, theirs in zip(weights, whole[name], strict=True):
            torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6, msg=name)
