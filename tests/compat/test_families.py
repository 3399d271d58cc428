"""What `accelerate` promises of every family, against the package's own modules."""

import copy
import pickle

import family_models
import pytest
import torch
from support.families import (
    ADAPTERS,
    DEEP,
    FAMILIES,
    FRAMES,
    NAMES,
    Case,
    change,
    part_of,
    same,
    snr,
)
from support.oracle import mismatches
from torch import Tensor, nn

import muomni_fast
from muomni_fast.compat.adapter import adapter_of

# All in one process: importing transformers takes seconds.
pytestmark = pytest.mark.xdist_group("families")


@pytest.fixture(params=ADAPTERS, ids=lambda family: family.name)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
def test_results_are_theirs(family):
    case = Case(family)
    assert any(case.family.name.startswith(f.family) for f in case.report.swapped), case.report
    assert not case.report.skipped
    adapter = adapter_of(case.part)
    assert set(adapter.methods) == set(case.inputs)
    theirs, ours = case.theirs(), case.ours()
    same(ours, theirs)
    exact = case.theirs(copy.deepcopy(case.model).double())
    for found, own, truth in zip(ours, theirs, exact, strict=True):
        if found.is_floating_point() and truth.any():
            assert snr(found, truth) >= min(snr(own, truth), 200) - 3
    same(case.ours(), ours)


def test_it_is_ours_that_runs(case, monkeypatch):
    """Their code is not called, in eval mode without gradients."""
    expected = case.ours()
    for name in case.inputs:
        monkeypatch.setattr(type(case.part), name, lambda *_: pytest.fail("their code runs"))
    same(case.ours(), expected)


def test_changed_weights_are_noticed(case):
    before = case.ours()
    change(case.part)
    after = case.ours()
    same(after, case.theirs())
    assert not all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    other = case.family.make(True)
    change(other, 0.8)
    case.model.load_state_dict(other.state_dict())
    same(case.ours(), case.theirs(other))


def test_an_optimiser_step_is_noticed(case):
    weights = [p for p in case.part.parameters() if p.requires_grad]
    if not weights:
        pytest.skip("it has no parameters")
    before = case.ours()
    optimiser = torch.optim.SGD(weights, 1.0)
    for weight in weights:
        weight.grad = torch.full_like(weight, 1e-2)
    optimiser.step()
    after = case.ours()
    same(after, case.theirs())
    assert not all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_another_dtype_and_back(case):
    case.ours()
    case.model.double()
    same(case.ours(), case.theirs(), least=200)
    case.model.float()
    same(case.ours(), case.theirs())


def test_copies_are_independent(case):
    expected = case.ours()
    twin = copy.deepcopy(case.model)
    # The part alone: torch pickles no weights that are parametrized, as other parts have them.
    sent = pickle.loads(pickle.dumps(case.part))
    for other in (part_of(twin, case.family), sent):
        adapter = adapter_of(other)
        assert adapter is not None and adapter is not adapter_of(case.part)
        found = case.results(other, lambda name, part=other: getattr(part, name))
        same(found, expected)
    change(case.part)
    same(case.ours(twin), expected)
    change(part_of(twin, case.family))
    same(case.ours(twin), case.theirs(twin))
    muomni_fast.restore(twin)
    assert adapter_of(case.part) is not None


def test_restored_is_as_before(case):
    case.ours()
    part = case.part
    assert muomni_fast.restore(case.model) is case.model
    assert list(part.__dict__) == list(case.before)
    for name, value in case.before.items():
        assert part.__dict__[name] is value, name
    for name in (*case.inputs, "train", "_apply", "_load_from_state_dict"):
        assert getattr(part, name).__func__ is getattr(type(part), name)
    assert not muomni_fast.restore(case.model).__dict__.keys() & case.inputs.keys()


def test_the_state_dict_shows_nothing(case, tmp_path):
    plain = case.family.make(True).state_dict()
    assert list(case.model.state_dict()) == list(plain)
    if case.family.saves:
        case.model.save_pretrained(tmp_path)
        again = type(case.model).from_pretrained(tmp_path)
        assert adapter_of(part_of(again, case.family)) is None
        same(case.ours(), case.theirs(again))
        muomni_fast.accelerate(again, slower=True)
        same(case.ours(again), case.ours())


def test_training_is_theirs(case):
    """In training mode their own code runs, with gradients where theirs has them."""
    twin = muomni_fast.restore(copy.deepcopy(case.model))
    name, arguments = next(iter(case.inputs.items()))
    grads = []
    for model in (case.model, twin):
        part = part_of(model.train(), case.family)
        torch.manual_seed(1)
        result = getattr(part, name)(*arguments)
        first = result[0] if isinstance(result, tuple) else result
        if first.requires_grad:
            first.square().sum().backward()
        grads.append([first, *(p.grad for p in part.parameters() if p.grad is not None)])
    assert len(grads[0]) == len(grads[1])
    same(*grads)


def test_gradients_in_eval_mode_are_theirs(case):
    name, arguments = next(iter(case.inputs.items()))
    if name == "encode":
        pytest.skip("codes have no gradient")
    results = []
    for method in (getattr(case.part, name), getattr(type(case.part), name).__get__(case.part)):
        result = method(*arguments)
        first = result[0] if isinstance(result, tuple) else result
        weights = [p for p in case.part.parameters() if p.requires_grad]
        grads = torch.autograd.grad(first.sum(), weights, allow_unused=True)
        results.append([grad for grad in grads if grad is not None])
    assert len(results[0]) == len(results[1]) > 0
    same(*results)


@pytest.mark.long
@pytest.mark.parametrize("case", ADAPTERS[:5], indirect=True, ids=DEEP[:5])
def test_compiles_as_one_graph(case):
    """Nothing breaks the graph, which reads the weights at every call."""
    expected = case.ours()
    compiled = {
        name: torch.compile(getattr(case.part, name), fullgraph=True, backend="eager")
        for name in case.inputs
    }
    same(case.results(case.part, lambda name: compiled[name]), expected)
    change(case.part)
    same(case.results(case.part, lambda name: compiled[name]), case.theirs())


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f.name in ("EnCodec", "X-Codec", "Mimi")]
)
def test_codes_are_the_nearest(family):
    """Of what the first codebook is given, on rows made so that rounding decides."""
    case = Case(family)
    part, adapter = case.part, adapter_of(case.part)
    books = [book.clone() for book in adapter.books(part)]
    middle = (books[0][:8] + books[0][8:16]) / 2  # as near to one as to the other
    (x,) = case.inputs["encode"]
    rows = x.transpose(1, 2).reshape(-1, x.shape[1])
    if family.name == "Mimi":
        rows = torch.cat([rows, 1e3 * rows])
        z = part.input_proj(rows.t()[None])[0].t().detach()
    else:
        rows = z = torch.cat([rows, middle, torch.nextafter(middle, rows[:8]), 1e3 * rows])
    with torch.no_grad():
        codes = part.encode(rows.t()[None])[:, 0]
    for code, book in zip(codes, books, strict=False):
        assert mismatches(z, book, code) == 0
        z = z - book[code]


def test_a_known_class_that_is_not_swapped_says_why():
    case = Case(FAMILIES[NAMES.index("SpeechT5")])
    muomni_fast.restore(case.model)
    own = type(case.model)

    class Derived(own):
        def forward(self, spectrogram: Tensor) -> Tensor:
            return super().forward(spectrogram) * 2

    derived = Derived(case.model.config).eval()
    (found,) = muomni_fast.accelerate(derived).found
    assert (
        not found.methods and "derived from" in found.reason and "SpeechT5HifiGan" in found.reason
    )
    replaced = copy.deepcopy(case.model)
    replaced.forward = lambda spectrogram: spectrogram
    (found,) = muomni_fast.accelerate(replaced).found
    assert found.reason == "its forward was replaced before"
    assert "not swapped" in str(found)
    hooked = copy.deepcopy(case.model)
    hooked.resblocks[0].register_forward_hook(lambda *_: None)
    assert "hooked" in muomni_fast.accelerate(hooked).skipped[0].reason
    sloped = copy.deepcopy(case.model)
    sloped.resblocks[1].leaky_relu_slope = 0.3
    assert "slope" in muomni_fast.accelerate(sloped).skipped[0].reason
    other = copy.deepcopy(case.model)
    own_forward = own.forward
    try:
        own.forward = lambda self, spectrogram: own_forward(self, spectrogram) * 1.001
        assert "other audio" in muomni_fast.accelerate(other).skipped[0].reason
    finally:
        own.forward = own_forward


def test_a_hook_set_later_is_called_and_a_replaced_module_runs():
    case = Case(FAMILIES[NAMES.index("SpeechT5")])
    case.ours()
    seen = []
    handle = case.part.resblocks[1].register_forward_hook(lambda *_: seen.append(1))
    same(case.ours(), case.theirs())
    assert len(seen) == 2
    handle.remove()
    case.part.conv_pre = copy.deepcopy(case.part.conv_pre)
    change(case.part.conv_pre)
    same(case.ours(), case.theirs())
    assert adapter_of(case.part)._view.conv_pre is case.part.conv_pre
    case.part.apply_weight_norm()
    same(case.ours(), case.theirs())
    assert len(seen) == 2


def test_other_modes_and_weights_that_are_lent():
    case = Case(FAMILIES[NAMES.index("VITS, speakers")])
    part, inputs = case.part, case.inputs["forward"]
    with torch.inference_mode():
        first = part(*inputs).clone()
    same([first], case.ours())
    weights = {name: 0.9 * weight.detach() for name, weight in part.named_parameters()}
    with torch.no_grad():
        lent = torch.func.functional_call(part, weights, inputs)
        twin = muomni_fast.restore(copy.deepcopy(part))
        same([lent], [torch.func.functional_call(twin, weights, inputs)])
        with torch.autocast("cpu", torch.bfloat16):
            same([part(*inputs)], [twin(*inputs)], least=25)
        same([part(inputs[0], inputs[1][:1])], [twin(inputs[0], inputs[1][:1])])
    same(case.ours(), [first])
    case.model.bfloat16()
    same(case.ours(), case.theirs(), least=25)


def test_what_has_no_counterpart_runs_as_before():
    case = Case(FAMILIES[NAMES.index("vector-quantize-pytorch")])
    part, (x,) = case.part, case.inputs["forward"]
    plain = muomni_fast.restore(copy.deepcopy(part))
    mask = torch.arange(FRAMES)[None] < torch.tensor([[FRAMES], [3]])
    with torch.no_grad():
        for arguments in ({"mask": mask}, {"return_all_codes": True}, {"beam_size": 2}):
            same(list(part(x, **arguments)), list(plain(x, **arguments)), least=float("inf"))
        same(list(part(x[0])), list(plain(x[0])))
    dropped = family_models.residual_vq(kmeans_init=True).eval()
    assert "first batch" in muomni_fast.accelerate(dropped).skipped[0].reason
    cosine = family_models.residual_vq(use_cosine_sim=True).eval()
    assert "cosine" in muomni_fast.accelerate(cosine).skipped[0].reason


def test_what_was_measured_slower_is_swapped_on_demand():
    case = Case(FAMILIES[NAMES.index("EnCodec")])
    muomni_fast.restore(case.model)
    (found,) = muomni_fast.accelerate(case.model).found
    assert "at most 64 codes were measured to be slower" in found.reason
    assert adapter_of(case.part) is None
    for layer in case.part.layers:
        layer.codebook.embed = torch.randn(65, 8)
    assert muomni_fast.accelerate(case.model).swapped


def test_dac_is_not_yet_known():
    pytest.importorskip("transformers")
    from transformers.models.dac.configuration_dac import DacConfig
    from transformers.models.dac.modeling_dac import DacResidualVectorQuantizer

    (found,) = muomni_fast.accelerate(nn.Sequential(DacResidualVectorQuantizer(DacConfig()))).found
    assert (found.name, found.family) == ("0", "DAC") and found.reason.startswith("not yet")


def test_nothing_known_and_no_model():
    report = pickle.loads(pickle.dumps(muomni_fast.accelerate(nn.Linear(2, 2))))
    assert report.found == () and str(report) == "nothing known in this model"
    for function in (muomni_fast.accelerate, muomni_fast.restore):
        with pytest.raises(TypeError, match="expected a torch.nn.Module, got str"):
            function("model")
