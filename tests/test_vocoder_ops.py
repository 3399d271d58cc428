"""The vocoder's operators and modules: contracts, gradients, transforms, `prepare`, streaming."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.library import opcheck

import muomni_fast
from muomni_fast import functional, fused, reference, torch_vocoder, vocoder_ops
from muomni_fast.reference.streaming import Latency

TYPE_1 = dict(
    n_mels=12,
    upsample_rates=(4, 2),
    upsample_kernel_sizes=(8, 4),
    upsample_initial_channel=16,
)
TYPE_2 = dict(
    n_mels=5,
    upsample_rates=(3, 2),
    upsample_kernel_sizes=(5, 2),
    upsample_initial_channel=8,
    resblock="2",
    resblock_kernel_sizes=(3, 1, 5),
    resblock_dilation_sizes=((1, 2, 3), (1,), (2,)),
)
TINY = dict(
    n_mels=3,
    upsample_rates=(2,),
    upsample_kernel_sizes=(4,),
    upsample_initial_channel=4,
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 2), (3,)),
)
TINY_2 = TINY | dict(resblock="2", resblock_dilation_sizes=((2,), (1,)))
CONFIGS = {"type 1": TYPE_1, "type 2": TYPE_2, "tiny": TINY, "keeps nothing inside": TINY_2}
EXACT = dict(rtol=0, atol=1e-6)

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
small_configs = pytest.mark.parametrize("config", [TINY, TINY_2], ids=["ragged", "type 2"])
both_modes = pytest.mark.parametrize("prepared", [False, True], ids=["as it is", "prepared"])


def pair(config: dict, dtype: torch.dtype = torch.float32, **options: bool):
    """A reference generator and a fast one, of the same weights, none of them near zero."""
    plain = reference.HiFiGANVocoder(**config)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.15)
    models = [lib.HiFiGANVocoder(**config, **options) for lib in (reference, muomni_fast)]
    for model in models:
        model.load_state_dict(plain.state_dict())
    return [model.to(dtype) for model in models]


def fast_of(config: dict = TYPE_1, **options: bool) -> muomni_fast.HiFiGANVocoder:
    return pair(config, **options)[1]


def arguments(model: reference.HiFiGANVocoder, mel: Tensor, lengths: Tensor | None) -> tuple:
    """What `generator_train` takes."""
    shape = fused.network_of(model)
    tensors = [t.detach().requires_grad_() for t in fused.tensors_of(model)]
    return mel, tensors, lengths, shape.rates, shape.kernels, shape.blocks.spec


def detached(arguments: tuple) -> tuple:
    return tuple([t.detach() for t in a] if isinstance(a, list) else a for a in arguments)


def subsets(count: int) -> list[list[bool]]:
    """All, and every second."""
    return [[True] * count, [i % 2 == 1 for i in range(count)]]


def check_every_generator_operator(config: dict, lengths: Tensor | None, **options: str) -> None:
    model, mel = fast_of(config), torch.randn(2, config["n_mels"], 5)
    train = arguments(model, mel.clone().requires_grad_(), lengths)
    opcheck(vocoder_ops.generator_train, train, **options)
    _, tensors, *shape = detached(train)
    opcheck(vocoder_ops.generator, (mel, tensors, *shape, False), **options)
    packed = vocoder_ops.pack("generator", tensors, fused.network_of(model))
    opcheck(vocoder_ops.generator, (mel, packed, *shape, True), **options)
    audio, kept = vocoder_ops.generator_train(mel, tensors, *shape)
    for needs in subsets(1 + len(tensors)):
        given = torch.randn_like(audio), audio, mel, kept, tensors, *shape, needs
        opcheck(vocoder_ops.generator_backward, given, **options)


def check_every_block_operator(config: dict, **options: str) -> None:
    model = fast_of(config)
    blocks = list(model.resblocks[: model.n_kernels])
    tensors = [t.detach() for t in fused.tensors_of_blocks(blocks)]
    x, spec = torch.randn(2, blocks[0].channels, 9), fused.network_of(model).blocks.spec
    opcheck(vocoder_ops.mrf, (x, tensors, spec), **options)
    leaves = [t.clone().requires_grad_() for t in tensors]
    opcheck(vocoder_ops.mrf_train, (x.clone().requires_grad_(), leaves, spec), **options)
    kept = vocoder_ops.mrf_train(x, tensors, spec)[1]
    for needs in subsets(1 + len(tensors)):
        given = torch.randn_like(x), x, kept, tensors, spec, needs
        opcheck(vocoder_ops.mrf_backward, given, **options)


@pytest.mark.parametrize("lengths", [None, [3, 5]], ids=["all frames", "lengths"])
@small_configs
def test_generator_operators_pass_opcheck(config, lengths):
    check_every_generator_operator(config, lengths and torch.tensor(lengths))


@small_configs
def test_block_operators_pass_opcheck(config):
    check_every_block_operator(config)


def test_operators_on_interpreted_kernels_pass_opcheck(monkeypatch):
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    single = dict(resblock_kernel_sizes=(3,), resblock_dilation_sizes=((2,),))
    check_every_generator_operator(TINY | single, None)
    for config in (TINY, TINY_2):  # what is kept, and what shares memory, differs
        check_every_generator_operator(config, torch.tensor([3, 5]), test_utils="test_faketensor")
        check_every_block_operator(config, test_utils="test_faketensor")


# Gradients


def weighted(y: Tensor) -> Tensor:
    """Every sample counts differently."""
    return y * (2 + torch.arange(y.numel(), dtype=y.dtype).view_as(y).sin())


def gradients(model: nn.Module, x: Tensor, *lengths: list[int] | None) -> dict[str, Tensor]:
    """Of a weighted sum of the result, with respect to the input and every parameter."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x, *lengths)
    weighted(y).sum().backward()
    return {"input": x.grad, **{name: p.grad.clone() for name, p in model.named_parameters()}}


def assert_same_gradients(slow: dict[str, Tensor], fast: dict[str, Tensor], error: float) -> None:
    assert slow.keys() == fast.keys()
    for name, expected in slow.items():
        assert expected.norm() > 0, name
        assert (fast[name] - expected).norm() <= error * expected.norm(), name


PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]


@pytest.mark.parametrize("lengths", [None, [5, 1, 9]], ids=["all frames", "lengths"])
@pytest.mark.parametrize("weight_norm", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize(("dtype", "error"), PRECISIONS, ids=["float32", "float64"])
@every_config
def test_gradients_equal_autograd_through_the_reference(config, dtype, error, weight_norm, lengths):
    slow, fast = pair(config, dtype, weight_norm=weight_norm)
    mel = torch.randn(3, config["n_mels"], 9, dtype=dtype)
    expected, found = gradients(slow, mel, lengths), gradients(fast, mel, lengths)
    assert_same_gradients(expected, found, error)
    for item, frames in enumerate(lengths or []):
        assert not found["input"][item, :, frames:].any()


BLOCKS = {
    "MRF": ("MRF", (6, (3, 5), ((1, 2), (3, 1)))),
    "ragged MRF": ("MRF", (6, (3, 5, 1), ((1, 2), (3,), (1, 1, 1)))),
    "MRF type 2": ("MRF", (6, (3, 5), ((1, 2), (3, 1)), "2")),
    "ResBlock": ("ResBlock", (6, 5, (1, 3))),
    "ResBlock type 2": ("ResBlock", (6, 5, (3,), "2")),
}


@pytest.mark.parametrize("rows", [1, 23])
@pytest.mark.parametrize(("name", "shape"), BLOCKS.values(), ids=BLOCKS)
def test_gradients_of_blocks_equal_autograd_through_the_reference(name, shape, rows):
    for dtype, error in PRECISIONS:
        slow, fast = (getattr(lib, name)(*shape).to(dtype) for lib in (reference, muomni_fast))
        fast.load_state_dict(slow.state_dict())
        x = torch.randn(2, 6, rows, dtype=dtype)
        torch.testing.assert_close(fast(x), slow(x), **EXACT)
        assert_same_gradients(gradients(slow, x), gradients(fast, x), error)


@pytest.mark.parametrize("lengths", [None, [2, 3]], ids=["all frames", "lengths"])
@small_configs
def test_gradcheck_in_float64(config, lengths):
    model, mel = fast_of(config).double(), torch.randn(2, 3, 3, dtype=torch.float64)
    lengths = lengths and torch.tensor(lengths)
    mel, tensors, *shape = arguments(model, mel.requires_grad_(), lengths)
    audio = lambda mel, *tensors: vocoder_ops.generator_train(mel, tensors, *shape)[0]
    assert torch.autograd.gradcheck(audio, (mel, *tensors))


STAGE, ALL = ["mrf", "up"], ["post", "mrf", "up", "mrf", "up", "pre"]


@pytest.mark.parametrize(
    ("needed", "visited"),
    [
        ("conv_post", ["post"]),
        ("resblocks.4.convs1.1.weight", ["post", *STAGE]),
        ("ups.1.bias", ["post", *STAGE]),
        ("resblocks.0", ["post", *STAGE, *STAGE]),
        ("conv_pre.weight", ALL),
        ("mel", ALL),
        ("", ALL),
    ],
    ids=lambda value: (value or "all but mel") if isinstance(value, str) else "",
)
def test_only_needed_gradients_are_computed(monkeypatch, needed, visited):
    """And no layer before the first that needs one is visited."""
    model, mel = fast_of(), torch.randn(2, 12, 6)
    expected = gradients(model, mel)
    model.zero_grad()
    names = [n for n, _ in model.named_parameters() if needed != "mel" and n.startswith(needed)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    calls, asked = [], []
    for layer in ("pre", "up", "mrf", "post"):
        real = getattr(torch_vocoder, f"{layer}_grad")
        spy = lambda *a, _real=real, _layer=layer: calls.append(_layer) or _real(*a)
        monkeypatch.setattr(torch_vocoder, f"{layer}_grad", spy)
    convolution = torch.ops.aten.convolution_backward
    spy = lambda *a: asked.extend(a[-1][1:]) or convolution(*a)
    monkeypatch.setattr(torch.ops.aten, "convolution_backward", spy)
    x = mel.clone().requires_grad_(needed == "mel")
    weighted(model(x)).sum().backward()
    assert calls == visited and sum(asked) == len(names)
    assert (x.grad is not None) == (needed == "mel")
    assert [n for n, p in model.named_parameters() if p.grad is not None] == names
    found = {"input": x.grad} | {n: p.grad for n, p in model.named_parameters()}
    for name in names or ["input"]:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("needed", ["input", "resblocks.1.convs2.0.weight"])
def test_blocks_compute_only_needed_gradients(needed):
    mrf, x = muomni_fast.MRF(4, (3, 5), ((1, 2),) * 2), torch.randn(1, 4, 9)
    expected = gradients(mrf, x)[needed]
    mrf.zero_grad()
    mrf.requires_grad_(False)
    leaves = {"input": x, **dict(mrf.named_parameters())}
    leaves[needed].requires_grad_()
    weighted(mrf(x)).sum().backward()
    assert [name for name, leaf in leaves.items() if leaf.grad is not None] == [needed]
    torch.testing.assert_close(leaves[needed].grad, expected)


def test_the_same_bits_every_time():
    model, mel = fast_of(muomni_fast.HiFiGANVocoder().config | TYPE_1), torch.randn(4, 12, 50)
    first = gradients(model, mel)
    for _ in range(4):
        assert all(torch.equal(g, first[name]) for name, g in gradients(model, mel).items())


def bytes_kept(model: nn.Module, mel: Tensor) -> int:
    """By a forward, for its backward; every storage once, parameters not."""
    kept = {}
    keep = lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t) is None or t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(mel)
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def test_little_is_kept_for_the_backward():
    mel = torch.randn(1, 128, 16)
    slow, fast = (lib.HiFiGANVocoder() for lib in (reference, muomni_fast))
    assert 0 < bytes_kept(fast, mel) <= 0.6 * bytes_kept(slow, mel)


# What is refused


@pytest.mark.parametrize("changed", ["mel", "weight", "audio"])
def test_what_changes_before_the_backward_is_noticed(changed):
    model, mel = fast_of(), torch.randn(1, 12, 4)
    audio = model(mel)
    loss = audio.sum()
    with torch.no_grad():
        {"mel": mel, "weight": model.ups[0].weight, "audio": audio}[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_derivatives_raise():
    model, mel = fast_of(), torch.randn(1, 12, 4)
    block, x = muomni_fast.ResBlock(4, 3, (1,)), torch.randn(1, 4, 9)
    for y, weight in (
        (model(mel), model.conv_pre.weight),
        (block(x), block.convs1[0].weight),
    ):
        (grad,) = torch.autograd.grad(y.square().sum(), weight, create_graph=True)
        with pytest.raises(RuntimeError, match="_backward has no derivative"):
            torch.autograd.grad(grad.sum(), weight, retain_graph=True)
        with pytest.raises(RuntimeError, match="_backward has no derivative"):
            grad.sum().backward()


def test_forward_mode_and_functional_gradients_say_that_they_are_not_supported():
    mel, x = torch.randn(1, 12, 4), torch.randn(1, 4, 9)
    for op, run, value in (
        ("generator", fast_of(), mel),
        ("generator", fast_of().eval().prepare(), mel),
        ("mrf", muomni_fast.MRF(4, (3,), ((1,),)), x),
        ("mrf", muomni_fast.ResBlock(4, 3, (1,)), x),
    ):
        with pytest.raises(NotImplementedError, match=f"^{op}: forward-mode"):
            torch.func.jvp(run, (value,), (value,))
        with pytest.raises(NotImplementedError, match=f"^{op}: forward-mode"):
            torch.func.jacfwd(run)(value)
        loss = lambda value, run=run: run(value).sum()
        for transform in (torch.func.grad(loss), torch.func.jacrev(run)):
            with pytest.raises(NotImplementedError, match=f"^{op}: torch.func gradients are not"):
                transform(value)
        with pytest.raises(NotImplementedError, match=f"^{op}: torch.func gradients are not"):
            torch.vmap(torch.func.grad(loss))(value[None])


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
    from muomni_fast import torch_inference

    slow, fast = pair(TYPE_1)
    mel = torch.randn(5, 12, 60)
    with torch.no_grad():
        for strip in (100, 2000, 5000, 20000):
            monkeypatch.setattr(torch_inference, "STRIP", strip)
            for lengths in (None, [60, 1, 0, 33, 59]):
                torch.testing.assert_close(fast(mel, lengths), slow(mel, lengths), **EXACT)


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


# Transforms and precisions


@pytest.mark.parametrize("with_lengths", [False, True], ids=["all frames", "lengths"])
def test_compiles_whole_with_dynamic_lengths(with_lengths):
    model = fast_of(TINY, weight_norm=True)
    step = lambda mel, *lengths: model(mel, *lengths).square().mean()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)
    stances = ["default", "fail_on_recompile", "fail_on_recompile"]
    for frames, stance in zip((5, 9, 3), stances, strict=True):
        mel = torch.randn(2, 3, frames)
        lengths = [torch.tensor([frames, 2])] if with_lengths else []
        with torch.compiler.set_stance(stance):
            loss = compiled(mel, *lengths)
            torch.testing.assert_close(loss, step(mel, *lengths))
            found = [
                torch.autograd.grad(s(mel, *lengths), [*model.parameters()])
                for s in (compiled, step)
            ]
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)


@both_modes
def test_compiled_inference(prepared):
    model = fast_of(TINY).eval()
    if prepared:
        model.prepare()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for frames in (5, 9):
            mel = torch.randn(2, 3, frames)
            torch.testing.assert_close(compiled(mel, [4, 2]), model(mel, [4, 2]), **EXACT)


def test_compiled_blocks():
    mrf = muomni_fast.MRF(4, (3, 5), ((1, 2), (3,)))
    compiled = torch.compile(mrf, backend="aot_eager", fullgraph=True, dynamic=True)
    for rows in (9, 14):
        x = torch.randn(2, 4, rows)
        torch.testing.assert_close(compiled(x), mrf(x))
        assert_same_gradients(
            gradients(mrf, x),
            {n.removeprefix("_orig_mod."): g for n, g in gradients(compiled, x).items()},
            1e-6,
        )


@both_modes
def test_exports_with_dynamic_lengths(prepared):
    model = fast_of(TINY).eval()
    if prepared:
        model.prepare()
    shapes = {"mel": {2: torch.export.Dim("frames")}, "lengths": {}}
    example = torch.randn(2, 3, 9), torch.tensor([9, 4])
    program = torch.export.export(model, example, dynamic_shapes=shapes)
    mel, lengths = torch.randn(2, 3, 31), torch.tensor([20, 31])
    torch.testing.assert_close(program.module()(mel, lengths), model(mel, lengths), **EXACT)


def test_vmap():
    mel, x = torch.randn(3, 2, 12, 5), torch.randn(3, 2, 4, 9)
    model, mrf = fast_of(), muomni_fast.MRF(4, (3, 5), ((1, 2), (3,)))
    for run, batch in ((model, mel), (mrf, x), (model.eval().prepare(), mel)):
        expected = torch.stack([run(item) for item in batch])
        torch.testing.assert_close(torch.vmap(run)(batch), expected, **EXACT)
        torch.testing.assert_close(torch.vmap(run, in_dims=1)(batch.transpose(0, 1)), expected)
        with torch.no_grad():
            torch.testing.assert_close(torch.vmap(run)(batch), expected, **EXACT)


def assert_no_worse(found: Tensor, slow: Tensor, exact: Tensor) -> None:
    """Twice the reference's error in the same dtype, at most."""
    for size in (lambda e: e.abs().max(), lambda e: e.square().mean().sqrt()):
        assert size(found.double() - exact) <= 2 * size(slow.double() - exact) + 1e-6


def test_autocast_casts_as_it_would_around_convolutions():
    slow, fast = pair(TYPE_1)
    mel = torch.randn(2, 12, 40)
    exact = copy.deepcopy(slow).double()(mel.double())
    with torch.autocast("cpu", torch.bfloat16):
        audio, expected = fast(mel), slow(mel)
        with torch.no_grad():
            inference = fast(mel)
        block = muomni_fast.ResBlock(4, 3, (1,))(torch.randn(1, 4, 9))
    assert {t.dtype for t in (audio, expected, inference, block)} == {torch.bfloat16}
    for found in (audio, inference):
        assert_no_worse(found, expected, exact)
    audio.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in fast.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    slow, fast = pair(TYPE_1, dtype)
    mel = torch.randn(2, 12, 40, dtype=dtype)
    exact = copy.deepcopy(slow).double()(mel.double())
    audio = fast(mel)
    audio.sum().backward()
    assert {p.grad.dtype for p in fast.parameters()} == {audio.dtype} == {dtype}
    with torch.no_grad():
        for found in (audio, fast(mel), fast.eval().prepare()(mel)):
            assert found.dtype == dtype
            assert_no_worse(found, slow(mel), exact)


def test_float64_runs_the_torch_path(monkeypatch):
    mel = torch.randn(1, 12, 4, dtype=torch.float64)
    assert "torch path, because" in muomni_fast.explain("generator", mel)
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    with pytest.raises(muomni_fast.BackendUnavailableError, match="kernels do not take float64"):
        fast_of().double()(mel)


def test_explain_and_doctor_know_the_vocoder(monkeypatch):
    mel, weight = torch.randn(1, 12, 4), torch.randn(16, 12, 7)
    for op in ("generator", "mrf"):
        why = f"{op}: torch path, because the tensors are not on a CUDA device"
        assert muomni_fast.explain(op, mel, weight) == why
        assert muomni_fast.doctor()["operations"][op]["cpu"] == why
        with monkeypatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            patch.setenv("MUOMNI_FAST_BACKEND", "triton")
            assert muomni_fast.explain(op, mel, weight) == f"{op}: Triton kernel"
    json.dumps(muomni_fast.doctor())


# Prepared inference


@pytest.mark.parametrize("weight_norm", [False, True], ids=["plain", "normed"])
@every_config
def test_prepared_audio_is_the_same(config, weight_norm):
    model, mel = (
        fast_of(config, weight_norm=weight_norm).eval(),
        torch.randn(3, config["n_mels"], 9),
    )
    with torch.no_grad():
        audio, cut = model(mel), model(mel, [9, 0, 4])
        assert model.prepare() is model
        for prepared in (model, copy.deepcopy(model), model.eval(), model.fold_weight_norm()):
            assert prepared._prepared is not None
            assert torch.equal(prepared(mel), audio) and torch.equal(prepared(mel, [9, 0, 4]), cut)
    torch.testing.assert_close(torch.cat([*model.stream(mel.split(2, 2))], 1), audio, **EXACT)
    assert model.state_dict().keys() == reference.HiFiGANVocoder(**config).state_dict().keys()


def test_no_gradient_passes_a_prepared_model(recwarn):
    audio = fast_of().eval().prepare()(torch.randn(1, 12, 4).requires_grad_())
    assert not audio.requires_grad and not recwarn


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


def test_weights_changed_in_place_do_not_reach_what_was_prepared():
    """Neither all of them nor, worse, some."""
    model, mel = fast_of().eval(), torch.randn(2, 12, 5)
    audio = model.prepare()(mel)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(model(mel), audio)


def test_preparing_for_training_or_from_nan_is_refused():
    model = fast_of(weight_norm=True)
    with pytest.raises(RuntimeError, match="expected eval mode"):
        model.prepare()
    model.resblocks[3].convs1[1].bias.data[2] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        model.eval().prepare()
    assert model._prepared is None


# Lengths


@pytest.mark.parametrize("mode", ["training", "inference", "prepared"])
@every_config
def test_each_item_sounds_as_if_it_were_alone(config, mode):
    slow, fast = pair(config)
    if mode == "prepared":
        fast.eval().prepare()
    mel, frames = torch.randn(4, config["n_mels"], 9), [9, 1, 0, 5]
    with torch.set_grad_enabled(mode == "training"):
        for lengths in (
            frames,
            *(torch.tensor(frames, dtype=d) for d in (torch.int32, torch.int64)),
        ):
            audio = fast(mel, lengths)
            torch.testing.assert_close(audio, slow(mel, lengths), **EXACT)
        for item, count in enumerate(frames):
            end = count * fast.hop_length
            assert not audio[item, end:].any()
            if count:
                alone = fast(mel[item : item + 1, :, :count])
                torch.testing.assert_close(audio[item, :end], alone[0], **EXACT)
        for value in (torch.nan, torch.inf):  # after the end it does not matter
            spoiled = mel.clone()
            for item, count in enumerate(frames):
                spoiled[item, :, count:] = value
            assert torch.equal(fast(spoiled, frames), audio)
        # Before it, zeros still follow.
        spoiled[3, 0, 4] = torch.nan
        audio = fast(spoiled, frames)
        assert audio[3].isnan().any() and not audio[3, 5 * fast.hop_length :].any()
        assert audio[:3].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16])
def test_lengths_of_few_bits_do_not_wrap(dtype):
    slow, fast = pair(TYPE_1)
    mel, lengths = torch.randn(1, 12, 110), torch.tensor([100], dtype=dtype)
    torch.testing.assert_close(fast(mel, lengths), slow(mel, lengths), **EXACT)


@both_modes
def test_lengths_that_do_not_fit_are_refused(prepared):
    model, mel = fast_of().eval(), torch.randn(2, 12, 5)
    if prepared:
        model.prepare()
    for lengths in ([1.0, 2.0], torch.ones(2), torch.ones(2, dtype=torch.bool)):
        with pytest.raises(TypeError, match="lengths: expected integers, got torch"):
            model(mel, lengths)
    for lengths, message in (
        ([5], r"lengths: expected \(2,\), got \(1,\)"),
        (torch.tensor(5), r"lengths: expected \(2,\), got \(\)"),
        ([[5, 5]], r"lengths: expected \(2,\), got \(1, 2\)"),
        ([-1, 5], "lengths: expected 0 to 5 frames, got -1 to 5"),
        ([3, 6], "lengths: expected 0 to 5 frames, got 3 to 6"),
    ):
        with pytest.raises(ValueError, match=message):
            model(mel, lengths)


# Streaming


def streamed(model: reference.HiFiGANVocoder, mel: Tensor, sizes: list[int]) -> list[Tensor]:
    assert sum(sizes) == mel.shape[2]
    return [*model.stream(iter(mel.split(sizes, 2)))]


@pytest.mark.parametrize("lib", [reference, muomni_fast], ids=["reference", "fast"])
@every_config
def test_streamed_audio_is_that_of_the_whole(lib, config):
    model = pair(config)[lib is muomni_fast]
    mel = torch.randn(2, config["n_mels"], 42)
    with torch.no_grad():
        audio = model(mel)
    cuts = [[size] * (42 // size) for size in (1, 2, 3, 7)] + [[42], [0, 20, 0, 0, 22, 0]]
    for _ in range(5):
        ends = [0, *torch.randint(43, (6,)).sort().values.tolist(), 42]
        cuts.append([b - a for a, b in zip(ends, ends[1:], strict=False)])
    for sizes in cuts:
        pieces = streamed(model, mel, sizes)
        assert all(piece.shape[1] >= model.hop_length for piece in pieces)
        assert not any(piece.requires_grad for piece in pieces)
        torch.testing.assert_close(torch.cat(pieces, 1), audio, **EXACT)
    assert not [*model.stream([])] and not [*model.stream([mel[:, :, :0]])]


def test_a_frame_is_heard_as_soon_as_what_it_depends_on_has_arrived():
    model = fast_of()
    future, seen, heard = model.context.future, [], []

    def one_by_one():
        for frame in torch.randn(1, 12, 30).split(1, 2):
            seen.append(frame)
            yield frame

    for piece in model.stream(one_by_one()):
        heard.append((len(seen), piece.shape[1] // model.hop_length))
    assert heard == [*((n + future, 1) for n in range(1, 31 - future)), (30, future)]


@pytest.mark.parametrize(
    ("chunk", "error", "message"),
    [
        (torch.zeros(1, 12, 3), ValueError, "mel_chunks: expected a batch of 2.* got 1"),
        (torch.zeros(2, 12, 3).double(), ValueError, "mel_chunks: expected dtype torch.float32"),
        (torch.zeros(2, 12, 3, device="meta"), ValueError, "mel_chunks: expected device cpu"),
        (torch.zeros(2, 11, 3), ValueError, r"mel: expected \(B, 12, T >= 1\), got \(2, 11, 3\)"),
        (torch.zeros(2, 12), ValueError, r"mel: expected \(B, 12, T >= 1\), got \(2, 12\)"),
        (torch.zeros(2, 12, 3).long(), TypeError, "mel: expected float16.*int64"),
    ],
    ids=["batch", "dtype", "device", "n_mels", "rank", "integers"],
)
def test_chunks_that_do_not_fit_are_refused(chunk, error, message):
    with pytest.raises(error, match=message):
        [*fast_of().stream([torch.zeros(2, 12, 3), chunk])]


CONTEXTS = CONFIGS | {
    "default": dict(n_mels=4, upsample_initial_channel=16),
    "v3": reference.hifigan.PRESETS["v3"] | dict(n_mels=4, upsample_initial_channel=8),
    "kernel equals rate": TYPE_2 | dict(upsample_kernel_sizes=(3, 2)),
    "long kernels": TYPE_1 | dict(upsample_kernel_sizes=(18, 12)),
}


@pytest.mark.parametrize("config", CONTEXTS.values(), ids=CONTEXTS)
def test_context_is_exactly_what_a_frame_depends_on(config):
    for model in pair(config, torch.float64):
        past, future = model.context.past, model.context.future
        at, frames = future + 2, past + future + 5
        mel = torch.randn(1, config["n_mels"], frames, dtype=torch.float64)
        changed = mel.clone()
        changed[:, :, at] += 1
        with torch.no_grad():
            differs = (model(mel) != model(changed)).view(frames, -1).any(1).nonzero().flatten()
        # Frame f depends on frames f - past to f + future.
        assert (int(differs.min()), int(differs.max())) == (at - future, at + past)


def test_latency_is_the_future_a_frame_waits_for():
    model = muomni_fast.HiFiGANVocoder()
    assert model.context.future == 6
    assert model.stream_latency(22050) == Latency(6, pytest.approx(6 * 256 / 22.05))
    assert fast_of().stream_latency(22050) == Latency(10, pytest.approx(10 * 8 / 22.05))
