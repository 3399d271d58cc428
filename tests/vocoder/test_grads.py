"""Gradients of the vocoder: equal to autograd's, only where needed; what is refused."""

import pytest
import torch
from support.small_vocoders import (
    EXACT,
    TYPE_1,
    arguments,
    assert_same_gradients,
    every_block,
    every_config,
    fast_of,
    gradients,
    pair,
    small_configs,
    weighted,
)
from torch import Tensor, nn

import muomni_fast
from muomni_fast import reference
from muomni_fast.vocoder import generator as generator_ops
from muomni_fast.vocoder import torch_backend as torch_vocoder

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]


@pytest.mark.parametrize("lengths", [None, [5, 1, 0, 9]], ids=["all frames", "lengths"])
@pytest.mark.parametrize("weight_norm", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize(("dtype", "error"), PRECISIONS, ids=["float32", "float64"])
@every_config
def test_gradients_equal_autograd_through_the_reference(config, dtype, error, weight_norm, lengths):
    slow, fast = pair(config, dtype, weight_norm=weight_norm)
    mel = torch.randn(4, config["n_mels"], 9, dtype=dtype)
    expected, found = gradients(slow, mel, lengths), gradients(fast, mel, lengths)
    assert_same_gradients(expected, found, error)
    for item, frames in enumerate(lengths or []):
        assert not found["input"][item, :, frames:].any()


def test_half_precision_gradients_of_many_items_are_added_up_in_float32():
    """Equal ones, a power of two of them: exact, where sums of halves are not."""
    model = fast_of().to(torch.bfloat16)
    mel = torch.randn(1, 12, 5).to(torch.bfloat16)
    model(mel).sum().backward()
    alone = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(mel.repeat(64, 1, 1), [5] * 64).sum().backward()
    for p, grad in zip(model.parameters(), alone, strict=True):
        assert torch.equal(p.grad, 64 * grad)


@pytest.mark.parametrize("rows", [1, 23])
@every_block
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
    audio = lambda mel, *tensors: generator_ops.generator_train(mel, tensors, *shape)[0]
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
