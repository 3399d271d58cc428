"""What `accelerate` sets on an instance stays with that instance: replicas, shallow copies, traces,
and hooks that compute weights."""

import concurrent.futures
import copy
from types import SimpleNamespace

import pytest
import torch
from support.families import ADAPTERS, FAMILIES, NAMES, Case, change, part_of, same
from support.models import Generator, normed
from torch import nn

import muomni_fast
from muomni_fast.compat import generators
from muomni_fast.compat.adapter import adapter_of

pytestmark = pytest.mark.xdist_group("families")  # importing transformers takes seconds


@pytest.fixture(params=ADAPTERS, ids=lambda family: family.name)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def replica_of(model: nn.Module, scale: float) -> nn.Module:
    """As `torch.nn.parallel.replicate` makes one for another GPU, whose tensors are others: here
    those of more than one dimension `scale` times the original's."""
    own = {module: module._replicate_for_data_parallel() for module in model.modules()}
    moved = lambda t: t * (scale if t.is_floating_point() and t.ndim > 1 else 1)
    for module, replica in own.items():
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else own[child]
        for name, tensor in module._parameters.items():
            if tensor is None:
                replica._parameters[name] = None
            else:
                setattr(replica, name, moved(tensor))
        for name, tensor in module._buffers.items():
            replica._buffers[name] = None if tensor is None else moved(tensor)
    return own[model]


def test_a_replica_computes_with_its_own_tensors(case):
    first = case.ours()
    plain = muomni_fast.restore(copy.deepcopy(case.model))
    for scale in (0.8, 1.25):  # replicas are made anew for every call
        expected = copy.deepcopy(plain)
        change(part_of(expected, case.family), scale)
        replica = part_of(replica_of(case.model, scale), case.family)
        found = case.results(replica, lambda name, part=replica: getattr(part, name), torch.float32)
        same(found, case.theirs(expected))
    assert adapter_of(replica) is None and adapter_of(case.part) is not None
    same(case.ours(), first, least=float("inf"))


def test_gradients_pass_through_a_replica():
    case = Case(FAMILIES[NAMES.index("SpeechT5")])
    case.model.train()
    replica_of(case.model, 1.0)(*case.inputs["forward"]).square().sum().backward()
    found = {name: parameter.grad for name, parameter in case.model.named_parameters()}
    plain = muomni_fast.restore(copy.deepcopy(case.model))
    plain.zero_grad()
    plain(*case.inputs["forward"]).square().sum().backward()
    same([*found.values()], [parameter.grad for parameter in plain.parameters()])


def test_first_calls_side_by_side(case):
    """Several threads prepare; whatever comes of whose work is what is used after."""
    expected = case.ours()
    adapter_of(case.part).drop()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda _: case.ours(), range(4))]
    for results in found:
        same(results, expected, least=float("inf"))
    sources, prepared = adapter_of(case.part)._kept
    assert prepared is not None and sources.unchanged(case.part)


def test_a_shallow_copy_is_a_module_of_its_own(case):
    """It shares the modules inside, and neither methods nor whether it is in training."""
    expected = case.ours()
    twin = copy.copy(case.part)
    assert not {*case.inputs, "train", "__getstate__"} & twin.__dict__.keys()
    twin.train()
    assert not case.part.training and adapter_of(case.part) is not None
    twin.eval()
    same(case.results(twin, lambda name: getattr(twin, name)), case.theirs())
    assert muomni_fast.accelerate(twin, slower=True).swapped
    assert adapter_of(twin) is not adapter_of(case.part)
    same(case.results(twin, lambda name: getattr(twin, name)), expected)
    muomni_fast.restore(twin)
    same(case.ours(), expected, least=float("inf"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_reads_the_weights(case):
    """`torch.jit.trace` records the module's own code: ours has prepared weights inside."""
    if "forward" not in case.inputs:
        pytest.skip("it has no forward")
    inputs = case.inputs["forward"]
    case.ours()
    with torch.no_grad():
        traced = torch.jit.trace(case.part, inputs, check_trace=False)
    assert "muomni::" not in str(traced.inlined_graph)
    change(case.part)
    with torch.no_grad():
        found = traced(*inputs)
    expected = case.theirs()[: len(found) if isinstance(found, tuple) else 1]
    same([*found] if isinstance(found, tuple) else [found], expected)


def test_a_symbolic_trace_has_the_modules_own_code():
    generator = Generator().eval()
    muomni_fast.accelerate(generator)
    mel = torch.randn(2, 6, 9)
    with torch.no_grad():
        expected = generator(mel)
        traced = torch.fx.symbolic_trace(nn.Sequential(generator))
        same([traced(mel)], [expected])
        change(generator)
        same([traced(mel)], [type(generator).forward(generator, mel)])


def test_export_and_functional_call_take_the_weights_they_are_given():
    case = Case(FAMILIES[NAMES.index("SpeechT5")])
    part, inputs = case.part, case.inputs["forward"]
    case.ours()
    with torch.no_grad():
        program = torch.export.export(part, inputs)
        state = {name: 0.9 * tensor for name, tensor in part.state_dict().items()}
        exported = program.module()
        exported.load_state_dict(state, strict=False)
        lent = torch.func.functional_call(part, state, inputs)
        case.model.load_state_dict(state)
        same([exported(*inputs), lent], case.theirs() * 2)


def step(generator: Generator) -> None:
    optimiser = torch.optim.SGD(generator.parameters(), 0.1)
    for parameter in generator.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    optimiser.step()


def checked(generator: Generator) -> torch.Tensor:
    """Audio, which is what a copy without anything of ours gives: hooks run there."""
    mel = torch.sin(torch.arange(54.0)).reshape(1, 6, 9)
    plain = Generator().eval()
    hooked = any(name.endswith("weight_g") for name, _ in generator.named_parameters())
    plain = normed(plain) if hooked else plain
    plain.load_state_dict(generator.state_dict())
    with torch.no_grad():
        audio = generator(mel)
        same([audio], [plain(mel)])
    return audio


@pytest.mark.parametrize("when", ["before", "after"])
def test_weights_that_hooks_compute_are_never_stale(when):
    """Normed `before` it is accelerated, or `after`, with a step of an optimiser in between calls;
    once the norm is removed, ours runs."""
    generator = Generator().eval()
    if when == "before":
        (found,) = muomni_fast.accelerate(normed(generator)).skipped
        assert found.reason.startswith("its weights are normed by hooks") and found.family
        assert adapter_of(generator) is None
    else:
        assert muomni_fast.accelerate(generator).swapped
        checked(generator)
        normed(generator)
    first = checked(generator)
    step(generator)
    second = checked(generator)
    assert not torch.allclose(first, second)
    for module in generator.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)
    assert muomni_fast.accelerate(generator).swapped
    same([checked(generator)], [second])
    step(generator)
    assert not torch.allclose(checked(generator), second)


@pytest.mark.parametrize("family", ["vector-quantize-pytorch", "micro-Omni quantizer"])
def test_hooks_inside_a_quantizer_are_called(family):
    case = Case(FAMILIES[NAMES.index(family)])
    expected = case.ours()
    layers = getattr(case.part, "layers", None) or case.part.codebooks
    seen = []
    handle = layers[1].register_forward_hook(lambda *_: seen.append(1))
    same(case.ours(), expected)
    calls = len(seen)
    assert calls > 0
    muomni_fast.restore(case.model)
    assert "hooked" in muomni_fast.accelerate(case.model, slower=True).skipped[0].reason
    handle.remove()
    assert muomni_fast.accelerate(case.model, slower=True).swapped
    same(case.ours(), expected)
    assert len(seen) == calls


def test_a_generator_of_another_signature_is_reported():
    class Pitched(Generator):
        def forward(self, x, pitch):
            return super().forward(x) + pitch

    Pitched.__module__, Pitched.__qualname__ = "models", "Generator"
    (found,) = muomni_fast.accelerate(Pitched().eval()).skipped
    assert "its own code does not take" in found.reason and "pitch" in found.reason


def test_arguments_of_a_version_that_takes_more():
    class Masked(Generator):
        def forward(self, x, valid=None):
            x = x if valid is None else x * (torch.arange(x.shape[2]) < valid)
            return super().forward(x)

    Masked.__module__, Masked.__qualname__ = "models", "Generator"
    masked, mel = Masked().eval(), torch.randn(1, 6, 9)
    plain = copy.deepcopy(masked)
    assert muomni_fast.accelerate(masked).swapped
    with torch.no_grad():
        same([masked(mel, valid=4), masked(mel, 4)], [plain(mel, valid=4)] * 2)
        same([masked(mel)], [plain(mel)])


def test_settings_of_any_kind_beside_the_modules():
    """HiFi-GAN's own code keeps a dict that gives its items as attributes."""

    class Settings(dict):
        __getattr__ = dict.__getitem__

    generator = Generator().eval()
    generator.h = Settings(rate=2)
    assert muomni_fast.accelerate(generator).swapped
    assert "forward" not in muomni_fast.restore(generator).__dict__


@pytest.mark.long
def test_a_generator_compiled_before_its_first_call_runs_ours(monkeypatch):
    generator, mel = Generator().eval(), torch.randn(1, 6, 9)
    with torch.no_grad():
        expected = generator(mel)
        muomni_fast.accelerate(generator)
        monkeypatch.setattr(Generator, "forward", lambda *_: pytest.fail("their code runs"))
        compiled = torch.compile(generator.forward, fullgraph=True, backend="eager")
        same([compiled(mel)], [expected])


def test_audio_that_may_be_rounded_to_tf32_is_compared_as_float16s_is(monkeypatch):
    """As two ways of the same audio differ by more there than float32's do elsewhere."""
    conv = torch.backends.cudnn.conv
    for like, precision, least in (
        (SimpleNamespace(is_cuda=True, dtype=torch.float32), "tf32", torch.float16),
        (SimpleNamespace(is_cuda=True, dtype=torch.float32), "ieee", torch.float32),
        (SimpleNamespace(is_cuda=True, dtype=torch.bfloat16), "tf32", torch.bfloat16),
        (SimpleNamespace(is_cuda=False, dtype=torch.float32), "tf32", torch.float32),
    ):
        monkeypatch.setattr(conv, "fp32_precision", precision)
        assert generators._least_snr(like) == generators.LEAST_SNR[least]
