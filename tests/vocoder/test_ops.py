"""The vocoder's operators: contracts, transforms, precisions."""

import copy
import json

import pytest
import torch
from support.small_vocoders import (
    EXACT,
    TINY,
    TINY_2,
    TYPE_1,
    arguments,
    assert_same_gradients,
    both_modes,
    fast_of,
    gradients,
    pair,
    small_configs,
)
from torch import Tensor
from torch.library import opcheck

import muomni_fast
from muomni_fast.vocoder import generator as generator_ops
from muomni_fast.vocoder import ops as vocoder_ops
from muomni_fast.vocoder.plan import plan_of_blocks, plan_of_generator


def detached(arguments: tuple) -> tuple:
    return tuple([t.detach() for t in a] if isinstance(a, list) else a for a in arguments)


def subsets(count: int) -> list[list[bool]]:
    """All, and every second."""
    return [[True] * count, [i % 2 == 1 for i in range(count)]]


def check_every_generator_operator(config: dict, lengths: Tensor | None, **options: str) -> None:
    model, mel = fast_of(config), torch.randn(2, config["n_mels"], 5)
    train = arguments(model, mel.clone().requires_grad_(), lengths)
    opcheck(generator_ops.generator_train, train, **options)
    _, tensors, *shape = detached(train)
    opcheck(generator_ops.generator, (mel, tensors, *shape, None), **options)
    ready = plan_of_generator(model).prepare()
    opcheck(generator_ops.generator, (mel, ready.tensors, *shape, ready.backend), **options)
    audio, kept = generator_ops.generator_train(mel, tensors, *shape)
    for needs in subsets(1 + len(tensors)):
        given = torch.randn_like(audio), audio, mel, kept, tensors, *shape, needs
        opcheck(generator_ops.generator_backward, given, **options)


def check_every_block_operator(config: dict, **options: str) -> None:
    model = fast_of(config)
    blocks = list(model.resblocks[: model.n_kernels])
    tensors = [t.detach() for t in plan_of_blocks(blocks).tensors()]
    shape = plan_of_generator(model).shape.blocks
    x, spec = torch.randn(2, blocks[0].channels, 9), shape.spec
    opcheck(vocoder_ops.mrf, (x, tensors, spec, None), **options)
    ready = plan_of_blocks(blocks).prepare()
    opcheck(vocoder_ops.mrf, (x, ready.tensors, spec, ready.backend), **options)
    leaves = [t.clone().requires_grad_() for t in tensors]
    opcheck(vocoder_ops.mrf_train, (x.clone().requires_grad_(), leaves, spec), **options)
    kept = vocoder_ops.mrf_train(x, tensors, spec)[1]
    for needs in subsets(1 + len(tensors)):
        given = torch.randn_like(x), x, kept, tensors, spec, needs
        opcheck(vocoder_ops.mrf_backward, given, **options)


@pytest.mark.long
@pytest.mark.parametrize("lengths", [None, [3, 5]], ids=["all frames", "lengths"])
@small_configs
def test_generator_operators_pass_opcheck(config, lengths):
    check_every_generator_operator(config, lengths and torch.tensor(lengths))


@pytest.mark.long
@small_configs
def test_block_operators_pass_opcheck(config):
    check_every_block_operator(config)


@pytest.mark.long
@pytest.mark.usefixtures("interpreter")
def test_operators_on_interpreted_kernels_pass_opcheck(monkeypatch):
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    single = dict(resblock_kernel_sizes=(3,), resblock_dilation_sizes=((2,),))
    check_every_generator_operator(TINY | single, None)
    for config in (TINY, TINY_2):  # what is kept, and what shares memory, differs
        check_every_generator_operator(config, torch.tensor([3, 5]), test_utils="test_faketensor")
        check_every_block_operator(config, test_utils="test_faketensor")


def test_gradients_have_the_dtype_of_what_they_belong_to(monkeypatch):
    """Kernels sum them in float32; compiled code relies on what the fake says."""
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    mel, tensors, *shape = arguments(fast_of(TINY).half(), torch.randn(1, 3, 2).half(), None)
    tensors = [t.detach() for t in tensors]
    audio, kept = generator_ops.generator_train(mel, tensors, *shape)
    needs = [True] * (1 + len(tensors))
    grads = generator_ops.generator_backward(audio, audio, mel, kept, tensors, *shape, needs)
    assert {g.dtype for g in grads} == {torch.float16}


# Transforms and precisions


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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
    lengths = torch.tensor([[5, 2], [0, 1], [3, 4]])
    expected = torch.stack([model(item, own) for item, own in zip(mel, lengths, strict=True)])
    torch.testing.assert_close(torch.vmap(model)(mel, lengths), expected, **EXACT)


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


@pytest.mark.usefixtures("interpreter")
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
