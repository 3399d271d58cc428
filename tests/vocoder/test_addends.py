"""What is added between a generator's layers (speakers, a harmonic source), on every path."""

import copy
from collections.abc import Sequence

import pytest
import torch
from support.kernel_checks import all_close, assert_close
from support.oracle import snr_db
from support.small_vocoders import EXACT, weighted
from torch import Tensor, nn
from torch.library import opcheck

import muomni_fast
from muomni_fast import reference
from muomni_fast.vocoder import generator as generators
from muomni_fast.vocoder.plan import plan_of_generator
from muomni_fast.vocoder.shapes import with_addends

CONFIG = dict(
    n_mels=5,
    upsample_rates=(3, 2),
    upsample_kernel_sizes=(6, 4),
    upsample_initial_channel=8,
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1,), (2,)),
    conv_post_bias=False,
    final="clamp",
)
# Of every place: for all rows, for each row, or none.
KINDS = {
    "speaker": "1",
    "frames": "r",
    "a level": "--r",
    "speakers": "111",
    "source": "-rr",
    "all": "r1r",
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
libs = pytest.mark.parametrize("lib", [reference, muomni_fast], ids=["reference", "fast"])


def of(lib, dtype: torch.dtype = torch.float32) -> reference.HiFiGANVocoder:
    torch.manual_seed(1)
    model = reference.HiFiGANVocoder(**CONFIG)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    twin = lib.HiFiGANVocoder(**CONFIG)
    twin.load_state_dict(model.state_dict())
    return twin.to(dtype).eval()


def addends_of(kind: str, batch: int, frames: int, dtype=torch.float32) -> list[Tensor | None]:
    rows = frames, 3 * frames, 6 * frames
    return [
        None if c == "-" else torch.randn(batch, 8 >> i, 1 if c == "1" else rows[i], dtype=dtype)
        for i, c in enumerate(kind)
    ]


def hooked(model: nn.Module, addends: Sequence[Tensor | None]) -> nn.Module:
    """A copy that adds them by hooks."""
    model = copy.deepcopy(model)
    for layer, addend in zip([model.conv_pre, *model.ups], addends, strict=False):
        if addend is not None:
            layer.register_forward_hook(lambda _, args, out, addend=addend: out + addend)
    return model


def leaves(addends: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if a is None else a.detach().clone().requires_grad_() for a in addends]


def gradients(model, mel: Tensor, addends: Sequence[Tensor | None], call) -> list[Tensor]:
    """Audio, and the gradients of mel, addends and parameters of a weighted sum of it."""
    given = [a for a in addends if a is not None]
    audio = call(model, mel, addends)
    inputs = [mel, *given, *model.parameters()]
    return [audio.detach(), *torch.autograd.grad(weighted(audio).sum(), inputs)]


def cut(addends: Sequence[Tensor | None], item: int, frames: int, of: int):
    return [
        None if a is None else a[item : item + 1, :, : a.shape[2] // of * frames or 1]
        for a in addends
    ]


@libs
@every_kind
def test_audio_and_gradients_are_those_of_hooks_that_add(lib, kind):
    mel = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    addends = leaves(addends_of(kind, 2, 7, torch.float64))
    model = of(lib, torch.float64)
    by_hooks = hooked(of(reference, torch.float64), addends)
    expected = gradients(by_hooks, mel, addends, lambda m, x, a: m(x))
    found = gradients(model, mel, addends, lambda m, x, a: m(x, addends=a))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(model(mel), found[0])


@every_kind
def test_without_gradients_and_prepared(kind):
    mel, addends = torch.randn(2, 5, 20), addends_of(kind, 2, 20)
    plain, fast = of(reference), of(muomni_fast)
    with torch.no_grad():
        exact = hooked(plain, addends).double()(mel.double())
        audio = fast(mel, addends=addends)
        for found in (plain(mel, addends=addends), audio):
            assert snr_db(found, exact) > 100
        assert torch.equal(fast.prepare()(mel, addends=addends), audio)
        few = [addends_of(kind, 1, 2), torch.randn(1, 5, 2)]
        assert_close(fast(few[1], addends=few[0]), plain(few[1], addends=few[0]).double())
        assert fast(mel, addends=[]).equal(fast(mel)) and fast(mel, None, [None]).equal(fast(mel))
    assert not fast(mel, addends=leaves(addends)).requires_grad  # as of weights


@pytest.mark.parametrize("mode", ["training", "inference", "prepared"])
@every_kind
def test_items_of_different_lengths(mode, kind):
    """Each as if alone; what is added past an item's end does not matter, and has no gradient."""
    plain, fast, frames = of(reference), of(muomni_fast), [7, 0, 3, 1]
    if mode == "prepared":
        fast.prepare()
    mel, addends = torch.randn(4, 5, 7), addends_of(kind, 4, 7)
    for addend in addends:
        if addend is not None and addend.shape[2] > 1:
            for item, count in enumerate(frames):
                addend[item, :, addend.shape[2] // 7 * count :] = torch.nan
    with torch.set_grad_enabled(mode == "training"):
        audio = fast(mel, frames, addends)
        assert_close(audio, plain(mel, frames, addends).double())
        for item, count in enumerate(frames):
            assert not audio[item, 6 * count :].any()
            if count:
                alone = fast(mel[item : item + 1, :, :count], addends=cut(addends, item, count, 7))
                assert torch.equal(audio[item, : 6 * count], alone[0])
    if mode == "training":
        mel.requires_grad_()
        addends = leaves(addends)
        call = lambda m, x, a: m(x, frames, a)
        found = gradients(fast, mel, addends, call)
        all_close(found, [g.double() for g in gradients(plain, mel, addends, call)])


@libs
@every_kind
def test_streams(lib, kind):
    """In chunks of any sizes, what is for each row cut with the mel."""
    model, frames = of(lib), 40
    mel, addends = torch.randn(2, 5, frames), addends_of(kind, 2, frames)
    with torch.no_grad():
        audio = model(mel, addends=addends)
    for sizes in ([1] * 40, [7, 0, 20, 13], [40]):
        ends = torch.tensor(sizes).cumsum(0).tolist()
        chunks = []
        for first, last in zip([0, *ends], ends, strict=False):
            own = [
                a if a is None or a.shape[2] == 1
                else a[:, :, a.shape[2] // frames * first : a.shape[2] // frames * last]
                for a in addends
            ]  # fmt: skip
            chunks.append((mel[:, :, first:last], own))
        pieces = [*model.stream(iter(chunks))]
        assert not any(piece.requires_grad for piece in pieces)
        assert_close(torch.cat(pieces, 1), audio.double())


def test_a_stream_may_change_its_speaker():
    model, mel = of(reference), torch.randn(1, 5, 40)
    first, second = torch.randn(2, 1, 8, 1)
    pieces = model.stream([(mel[:, :, :20], [first]), (mel[:, :, 20:], [second])])
    rows = torch.cat([first.expand(-1, -1, 20), second.expand(-1, -1, 20)], 2)
    with torch.no_grad():
        assert_close(torch.cat([*pieces], 1), model(mel, addends=[rows]).double())


@libs
def test_streams_refuse_other_places_than_before(lib):
    chunk, addend = torch.randn(1, 5, 3), torch.randn(1, 8, 1)
    for chunks, message in (
        ([(chunk, [addend]), chunk], r"expected addends \[0\], as before, got \[\]"),
        ([chunk, (chunk, [addend])], r"expected addends \[\], as before, got \[0\]"),
        ([(chunk, [addend[:, :7]])], r"addends\[0\]: expected \(1, 8, 1\) or \(1, 8, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            [*of(lib).stream(chunks)]


@libs
@pytest.mark.parametrize(
    ("addends", "error", "message"),
    [
        (torch.zeros(2, 8, 1), TypeError, "addends: expected a list of tensors and None, got a T"),
        ([1.0], TypeError, r"addends\[0\]: expected a torch.Tensor, got float"),
        (
            [torch.zeros(2, 8, 1).long()],
            TypeError,
            r"addends\[0\]: expected float16.*got torch.int",
        ),
        ([torch.zeros(2, 8, 1).double()], TypeError, r"addends\[0\]: expected torch.float32, as"),
        ([torch.zeros(1, 8, 1)], ValueError, r"addends\[0\]: expected \(2, 8, 1\) or \(2, 8, 4\)"),
        ([None, torch.zeros(2, 4, 4)], ValueError, r"addends\[1\]: .* or \(2, 4, 12\), got"),
        ([None, None, torch.zeros(2, 4, 1)], ValueError, r"addends\[2\]: expected \(2, 2, 1\)"),
        ([None] * 4, ValueError, "addends: expected at most 3, for conv_pre and 2 levels, got 4"),
        ([torch.zeros(2, 8, 1, device="meta")], ValueError, "expected one device"),
    ],
    ids=[
        "one tensor",
        "number",
        "integers",
        "dtype",
        "batch",
        "rows",
        "channels",
        "many",
        "device",
    ],
)
def test_addends_that_do_not_fit_are_refused(lib, addends, error, message):
    with pytest.raises(error, match=message):
        of(lib)(torch.randn(2, 5, 4), addends=addends)


@libs
def test_shapes_alone(lib):
    model, addends = of(lib).to("meta"), [torch.randn(2, 8, 1, device="meta")]
    mel = torch.randn(2, 5, 4, device="meta")
    assert model(mel, addends=addends).shape == (2, 24)
    with pytest.raises(TypeError, match=r"addends\[0\]: expected torch.float32, as the mel"):
        model(mel, addends=[addends[0].half()])


# Operators


def test_the_backward_does_not_keep_what_was_added():
    model, mel, seen = of(muomni_fast), torch.randn(1, 5, 9), []
    addends = leaves(addends_of("rrr", 1, 9))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        audio = model(mel, addends=addends)
    held = {t.untyped_storage().data_ptr() for t in seen}
    assert not any(a.untyped_storage().data_ptr() in held for a in addends)
    audio.sum().backward()
    assert all(a.grad.shape == a.shape and a.grad.any() for a in addends)


@pytest.mark.parametrize("needed", [0, 1, 2])
def test_only_the_gradient_asked_for_is_computed(needed):
    model, mel = of(muomni_fast).requires_grad_(False), torch.randn(2, 5, 4)
    addends = addends_of("1r1", 2, 4)
    every = leaves(addends)
    weighted(model(mel, addends=every)).sum().backward()
    addends[needed].requires_grad_()
    weighted(model(mel, addends=addends)).sum().backward()
    assert [a.grad is not None for a in addends] == [i == needed for i in range(3)]
    torch.testing.assert_close(addends[needed].grad, every[needed].grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype):
    mel, addends = torch.randn(2, 5, 20), addends_of("1r1", 2, 20)
    exact = hooked(of(reference), addends).double()(mel.double()).detach()
    low = [a.to(dtype) for a in addends]
    plain, fast = of(reference, dtype), of(muomni_fast, dtype)
    with torch.no_grad():
        theirs = snr_db(plain(mel.to(dtype), addends=low), exact)
        assert snr_db(fast(mel.to(dtype), addends=low), exact) > theirs - 3
    given = leaves(low)
    fast(mel.to(dtype), addends=given).sum().backward()
    assert {a.grad.dtype for a in given} == {dtype}
    with torch.no_grad(), torch.autocast("cpu", dtype):
        found = of(muomni_fast)(mel, addends=addends)
        theirs = snr_db(of(reference)(mel, addends=addends), exact)
    assert found.dtype == dtype and snr_db(found, exact) > theirs - 3


def test_vmap_and_export():
    model, mel = of(muomni_fast), torch.randn(3, 2, 5, 4)
    addends = [torch.randn(3, 2, 8, 1), None, torch.randn(3, 2, 2, 24)]
    call = lambda x, a, b: model(x, addends=[a, None, b])
    expected = torch.stack([call(*own) for own in zip(mel, addends[0], addends[2], strict=True)])
    torch.testing.assert_close(torch.vmap(call)(mel, addends[0], addends[2]), expected, **EXACT)
    program = torch.export.export(model, (mel[0], None, [addends[0][0], None, addends[2][0]]))
    found = program.module()(mel[1], None, [addends[0][1], None, addends[2][1]])
    torch.testing.assert_close(found, expected[1], **EXACT)


def test_forward_mode_is_refused_for_addends_too():
    for model in (of(muomni_fast), of(muomni_fast).prepare()):
        mel, addend = torch.randn(1, 5, 3), torch.randn(1, 8, 1)
        run = lambda a, model=model, mel=mel: model(mel, addends=[a])
        with pytest.raises(NotImplementedError, match="generator: forward-mode"):
            torch.func.jvp(run, (addend,), (addend,))


@pytest.mark.long
def test_compiles_whole_with_dynamic_lengths():
    model = of(muomni_fast)
    loss = lambda mel, a, b: weighted(model(mel, addends=[a, b])).sum()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=True)
    for frames in (5, 9):
        mel, (a, b) = torch.randn(2, 5, frames), leaves(addends_of("1r", 2, frames))
        found, right = (torch.autograd.grad(f(mel, a, b), [a, b]) for f in (compiled, loss))
        for one, other in zip(found, right, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.long
def test_operators_with_addends_pass_opcheck():
    small = dict(upsample_rates=(2,), upsample_kernel_sizes=(3,), upsample_initial_channel=4)
    model = muomni_fast.HiFiGANVocoder(**CONFIG | small)
    plan, mel, lengths = plan_of_generator(model), torch.randn(2, 5, 3), torch.tensor([3, 1])
    tensors = [*(t.detach() for t in plan.tensors()), torch.randn(2, 4, 1), torch.randn(2, 2, 6)]
    spec = with_addends(plan.spec, [0, 1])
    opcheck(generators.generator, (mel, tensors, lengths, spec, None), test_utils="test_faketensor")
    grads = [t.clone().requires_grad_() for t in tensors]
    opcheck(generators.generator_train, (mel, grads, lengths, spec))
    audio, kept = generators.generator_train(mel, tensors, lengths, spec)
    needs = [True] * (1 + len(tensors))
    given = audio, audio, mel, kept, tensors, lengths, spec, needs
    opcheck(generators.generator_backward, given, test_utils="test_faketensor")


@pytest.mark.long
@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(("kind", "lengths"), [("1r", [4, 1]), ("r1r", None)])
def test_kernels(monkeypatch, kind, lengths):
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    mel, addends = torch.randn(2, 5, 4, requires_grad=True), leaves(addends_of(kind, 2, 4))
    for addend in addends if lengths else []:  # past the end it may be anything
        addend.data[1, :, addend.shape[2] // 4 or 1 :] = torch.nan
    plain, fast = of(reference, torch.float64), of(muomni_fast)
    call = lambda m, x, a: m(x, lengths, a)
    wide = mel.detach().double().requires_grad_()
    wides = leaves([a.detach().double() for a in addends])
    exact = gradients(plain, wide, wides, call)
    all_close(gradients(fast, mel, addends, call), exact)
    with torch.no_grad():
        assert_close(fast.prepare()(mel, lengths, addends), exact[0])
