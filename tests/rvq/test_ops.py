"""The quantizer's operators: contracts, gradients, compilation, what they refuse, and `prepare`."""

import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck
from torch.nn import functional as F

import muomni_fast
from muomni_fast import functional, reference
from muomni_fast.kernels.rvq.table import search_table
from muomni_fast.rvq import ops, quantize_ops


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


CODES = torch.arange(120).reshape(40, 3) % 16
REACHED = torch.arange(40) % 4
CALLS = {
    "encode": (ops.rvq_encode, (40, 20), [(16, 12)] * 3, None, (12, 20), (12,), True),
    "encode, table": (ops.rvq_encode, (40, 12), [(3, 16, 12)], (3, 2, 16, 16), None, None, True),
    "encode, fast": (ops.rvq_encode, (0, 12), [(3, 16, 12)], None, None, None, False),
    "decode": (ops.rvq_decode, CODES, (3, 16, 12), (20, 12), (20,)),
    "decode, inference": (ops.rvq_decode_inference, CODES, (3, 16, 12), (20, 12), (20,)),
    "decode without projection": (ops.rvq_decode, CODES[:, :2], (3, 16, 12), None, None),
    "quantize": (
        quantize_ops.rvq_quantize,
        (40, 20),
        (3, 16, 12),
        (12, 20),
        (12,),
        (20, 12),
        (20,),
        None,
    ),
    "quantize without projection": (quantize_ops.rvq_quantize, (40, 12), (3, 16, 12), *[None] * 5),
    "quantize partly": (
        quantize_ops.rvq_quantize,
        (40, 20),
        (3, 16, 12),
        (12, 20),
        *[None] * 3,
        REACHED,
    ),
    "code sums": (ops.code_sums, CODES[:, 0], (40, 20), 16),
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    op, *shapes = CALLS[name]
    args = [leaf(*a) if isinstance(a, tuple) else a for a in shapes]
    if op in (ops.rvq_encode, ops.rvq_decode_inference, ops.code_sums):  # without a gradient
        args = [a.detach() if isinstance(a, Tensor) else a for a in args]
    if op == ops.rvq_encode:
        args[1] = [torch.randn(shape) for shape in args[1]]
        if name == "encode, table":
            args[2] = search_table(args[1][0], mark_repeats=True)
    opcheck(op, tuple(args))


def test_backward_operators_pass_opcheck():
    books, weight = torch.randn(3, 16, 12), torch.randn(20, 12)
    for needs in ([True] * 3, [False, True, False]):
        opcheck(ops.rvq_decode_backward, (torch.randn(40, 20), CODES, books, weight, needs))
    mel, projection = torch.randn(40, 20), torch.randn(12, 20)
    grads = torch.randn(40, 20), torch.randn(40, 12), torch.randn(3), torch.randn(3)
    partly = CODES.where(REACHED[:, None] > torch.arange(3), -1)
    for needs in ([True] * 6, [False, True] * 3):
        for codes, reached in ((CODES, None), (partly, REACHED)):
            args = codes, mel, books, projection, torch.randn(12), weight, reached, needs
            opcheck(quantize_ops.rvq_quantize_backward, (*grads, *args))


# Gradients


@pytest.mark.parametrize("projections", [True, False])
def test_gradients_equal_autograd_through_the_reference(projections):
    shape = dict(n_codebooks=3, codebook_size=32, codebook_dim=24, n_mels=40, bias=True)
    if not projections:
        shape |= dict(n_mels=24, bias=False, projections=False)
    slow, fast = reference.RVQ(**shape), muomni_fast.RVQ(**shape)
    fast.load_state_dict(slow.state_dict())
    mel = torch.randn(5, 31, shape["n_mels"])
    grads = []
    for model in (slow, fast):
        x = mel.clone().requires_grad_()
        out = model(x)
        loss = F.mse_loss(out.mel, mel) + out.quantized.cos().sum()
        for stage, weight in enumerate((0.5, -2.0, 3.0)):
            loss = loss + weight * out.commitment_loss[stage] + out.codebook_loss[stage] / weight
        loss.backward()
        grads.append([x.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*grads, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_decode_gradients_equal_autograd_through_the_reference():
    slow = reference.RVQ(3, 32, 24, n_mels=40, bias=True)
    fast = muomni_fast.RVQ(3, 32, 24, n_mels=40, bias=True)
    fast.load_state_dict(slow.state_dict())
    codes = torch.randint(32, (5, 7, 2))
    for model in (slow, fast):
        model.decode(codes).sin().sum().backward()
    for (name, a), b in zip(fast.named_parameters(), slow.parameters(), strict=True):
        if name.startswith("proj_in"):
            assert a.grad is None
        elif name == "codebooks.2.weight":
            assert not a.grad.any()  # coarse decoding leaves it out
        else:
            assert (a.grad - b.grad).norm() <= 1e-5 * b.grad.norm(), name


def test_gradcheck_in_float64():
    """Finite differences, of what is differentiable with the codes held."""
    wide = dict(dtype=torch.float64)
    mel, weight, bias = leaf(9, 7, **wide), leaf(5, 7, **wide), leaf(5, **wide)
    books, out_weight, out_bias = leaf(1, 8, 5, **wide), leaf(7, 5, **wide), leaf(7, **wide)

    def quantize(mel, weight, bias, books, out_weight, out_bias):
        return functional.rvq_quantize(mel, books, weight, bias, out_weight, out_bias)

    fixed = [t.detach() for t in (mel, weight, bias, books, out_weight, out_bias)]
    commitment = lambda *a: quantize(*a, *fixed[3:]).commitment_loss
    assert torch.autograd.gradcheck(commitment, (mel, weight, bias))
    codebook = lambda books: quantize(*fixed[:3], books, *fixed[4:]).codebook_loss
    assert torch.autograd.gradcheck(codebook, (books,))
    frames = lambda *a: quantize(*fixed[:3], *a).mel
    assert torch.autograd.gradcheck(frames, (books, out_weight, out_bias))
    codes = torch.randint(8, (9, 1))
    decode = lambda *a: functional.rvq_decode(codes, *a)
    assert torch.autograd.gradcheck(decode, (books, out_weight, out_bias))


@pytest.mark.parametrize("needed", ["proj_in.weight", "codebooks.1.weight", "proj_out.bias"])
def test_only_needed_gradients_are_computed(needed):
    rvq, mel = muomni_fast.RVQ(2, 16, 8, n_mels=12, bias=True), torch.randn(30, 12)
    for name, parameter in rvq.named_parameters():
        parameter.requires_grad_(name == needed)
    F.mse_loss(rvq(mel).mel, mel).backward()
    assert [n for n, p in rvq.named_parameters() if p.grad is not None] == [needed]


def test_codes_nobody_chose_have_zero_gradients_not_missing_ones():
    rvq = muomni_fast.RVQ(2, 64, 8, n_mels=12)
    out = rvq(torch.randn(3, 12))
    out.mel.sum().backward()
    for stage, weight in enumerate(rvq.codebook_weights()):
        used = torch.zeros(64, dtype=torch.bool).index_fill(0, out.codes[:, stage], True)
        assert not weight.grad[~used].any() and weight.grad[used].any()


def test_the_same_bits_every_time():
    rvq, mel = muomni_fast.RVQ(), torch.randn(3000, 128)
    runs = []
    for _ in range(5):
        rvq.zero_grad()
        rvq(mel).mel.square().sum().backward()
        runs.append(torch.cat([p.grad.flatten() for p in rvq.parameters()]))
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_only_input_codes_and_weights_are_kept_for_the_backward():
    rvq, mel, kept = muomni_fast.RVQ(), torch.randn(5000, 128), {}
    keep = lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t) is None or t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        rvq(mel)
    weights = sum(p.numel() for p in rvq.parameters())
    assert sum(t.numel() for t in kept.values()) <= mel.numel() + 5000 * 2 + 2 * weights


# What is refused


def test_an_input_changed_before_the_backward_is_noticed():
    rvq, mel = muomni_fast.RVQ(), torch.randn(10, 128)
    loss = rvq(mel).mel.sum()
    mel.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_second_derivatives_raise():
    rvq, mel = muomni_fast.RVQ(), torch.randn(10, 128)
    for loss in (rvq(mel).mel.square().sum(), rvq.decode(rvq.encode(mel)).square().sum()):
        (grad,) = torch.autograd.grad(loss, rvq.proj_out.weight, create_graph=True)
        with pytest.raises(RuntimeError, match="_backward has no derivative"):
            grad.sum().backward()


def test_forward_mode_raises_instead_of_giving_zeros():
    rvq, mel = muomni_fast.RVQ(2, 16, 8, n_mels=12), torch.randn(4, 12)
    with pytest.raises(NotImplementedError, match="rvq_quantize: forward-mode"):
        torch.func.jvp(lambda x: rvq(x).mel, (mel,), (mel,))
    codes, books = torch.zeros(3, 2, dtype=torch.int64), torch.randn(2, 16, 8)
    with pytest.raises(NotImplementedError, match="rvq_decode: forward-mode"):
        torch.func.jacfwd(lambda b: functional.rvq_decode(codes, b))(books)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.jacrev])
def test_functional_gradients_say_that_they_are_not_supported(transform):
    rvq, mel = muomni_fast.RVQ(2, 16, 8, n_mels=12), torch.randn(4, 12)
    with pytest.raises(NotImplementedError, match="torch.func gradients are not supported"):
        transform(lambda x: rvq(x).mel.sum())(mel)
    with pytest.raises(NotImplementedError, match="torch.func gradients are not supported"):
        torch.vmap(transform(lambda x: rvq(x).mel.sum()))(mel)


def test_sums_have_no_derivative():
    with pytest.raises(RuntimeError, match="code_sums has no derivative"):
        ops.code_sums(CODES[:, 0], leaf(40, 20), 16).sum().backward()


def test_every_argument_must_fit():
    mel, books = torch.randn(3, 8), torch.randn(2, 4, 8)
    weight, bias = torch.randn(8, 8), torch.randn(8)
    encode, decode = functional.rvq_encode, functional.rvq_decode
    codes = torch.zeros(3, 2, dtype=torch.int64)
    for call, match in (
        (
            lambda: encode(mel, books, weight, bias[:1]),
            r"proj_in_bias: .* \(8,\), got \(1,\)",
        ),
        (lambda: encode(mel, books, None, bias), "proj_in_bias: expected None without"),
        (lambda: encode(mel, books, weight, bias.to("meta")), "proj_in_bias is on meta"),
        (
            lambda: encode(mel, books, table=torch.randn(2, 4, 8)),
            r"table: expected \(2, 2, 4, 12\) torch.float32, got \(2, 4, 8\)",
        ),
        (
            lambda: encode(mel, [books[0], books[1, :3]]),
            r"codebooks\[1\]: expected \(4, 8\) .* got \(3, 8\)",
        ),
        (lambda: encode(mel, []), "codebooks: expected at least one, got none"),
        (lambda: decode(codes, books, weight, bias[:3]), r"proj_out_bias: expected \(8,\)"),
        (lambda: decode(codes, books, None, bias), "proj_out_bias: expected None without"),
        (
            lambda: functional.rvq_quantize(mel, books, proj_out_weight=weight.to("meta")),
            "proj_out_weight is on meta",
        ),
        (lambda: functional.code_sums(codes[:, 0], mel[:2], 4), r"got \(3,\) and \(2, 8\)"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


# Transforms


@pytest.mark.long
def test_compiles_whole_with_dynamic_lengths():
    rvq = muomni_fast.RVQ(2, 32, 16, n_mels=24, bias=True)

    def step(mel: Tensor) -> Tensor:
        out = rvq(mel)
        again = rvq.decode(rvq.encode(mel))
        return F.mse_loss(out.mel, mel) + out.commitment_loss.sum() + again.square().mean()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)
    for frames in (5, 9, 1):
        mel = torch.randn(2, frames, 24)
        torch.testing.assert_close(compiled(mel), step(mel))
    compiled(mel).backward()
    grads = [p.grad.clone() for p in rvq.parameters()]
    rvq.zero_grad()
    step(mel).backward()
    for a, p in zip(grads, rvq.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


@pytest.mark.parametrize("prepared", [False, True])
def test_exports_with_dynamic_lengths(prepared):
    class Resynthesis(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rvq = muomni_fast.RVQ(2, 32, 16, n_mels=24).eval()

        def forward(self, mel: Tensor) -> Tensor:
            return self.rvq.decode(self.rvq.encode(mel))

    model, mel = Resynthesis(), torch.randn(2, 30, 24)
    if prepared:
        model.rvq.prepare()
    shapes = ({1: torch.export.Dim("frames")},)
    program = torch.export.export(model, (torch.randn(2, 9, 24),), dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(mel), model(mel))


def test_a_whole_quantizer_exports():
    rvq, mel = muomni_fast.RVQ(2, 16, 8, n_mels=12).eval(), torch.randn(2, 5, 12)
    found = torch.export.export(rvq, (mel,)).module()(mel)
    assert isinstance(found, muomni_fast.RVQOutput) and torch.equal(found.codes, rvq(mel).codes)
    torch.testing.assert_close(found.mel, rvq(mel).mel)


def test_vmap():
    rvq, mel = muomni_fast.RVQ(2, 16, 8, n_mels=12), torch.randn(4, 5, 12)
    codes = torch.vmap(rvq.encode)(mel)
    assert torch.equal(codes, rvq.encode(mel))
    torch.testing.assert_close(
        torch.vmap(rvq.decode, in_dims=1)(codes), rvq.decode(codes).mT.mT.transpose(0, 1)
    )
    torch.testing.assert_close(torch.vmap(lambda x: rvq(x).mel)(mel), rvq(mel).mel)


# Precision


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_lowered_matmul_precision_does_not_reach_the_codes(monkeypatch, precision):
    """Products rounded to tf32 or bfloat16, as torch then may, change no code."""
    from support.interpreter import truncated

    from muomni_fast.rvq import torch_backend as torch_rvq

    rvq, mel = muomni_fast.RVQ(codebook_size=1000), torch.randn(3000, 128)
    codes = rvq.encode(mel)
    kept = {"high": "tf32", "medium": "bf16"}[precision]
    products = {name: getattr(torch, name) for name in ("mm", "mv")}  # of many rows, of one

    def rounded(name: str, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        a, b = (torch.from_numpy(truncated(t.detach().numpy(), kept)) for t in (a, b))
        return products[name](a, b, out=out)

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        if torch_rvq.matmul_precision(mel.device) == "ieee":
            pytest.skip("this torch does not lower products on a CPU")
        assert torch_rvq.matmul_precision(mel.device) in ("tf32", "bf16")
        monkeypatch.setattr(torch_rvq, "matmul_precision", lambda device: kept)
        for name in products:
            monkeypatch.setattr(torch, name, functools.partial(rounded, name))
        lowered = rvq.encode(mel)
        rvq.eval().prepare()
        one_by_one = torch.cat([rvq.encode(row) for row in mel[:100].split(1)])
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(lowered, codes) and torch.equal(one_by_one, codes[:100])


# Prepared inference


def test_prepared_codes_and_frames_are_the_same():
    rvq, mel = muomni_fast.RVQ(3, bias=True).eval(), torch.randn(500, 128)
    codes, frames = rvq.encode(mel), rvq.decode(rvq.encode(mel))
    assert rvq.prepare() is rvq
    assert torch.equal(rvq.encode(mel), codes)
    torch.testing.assert_close(rvq.decode(codes), frames, rtol=1e-6, atol=1e-6)
    coarse = rvq.decode(codes[:, :1])
    assert torch.equal(copy.deepcopy(rvq).decode(codes), rvq.decode(codes))
    rvq.train()
    torch.testing.assert_close(rvq.decode(codes[:, :1]), coarse, rtol=1e-6, atol=1e-6)
    assert set(rvq.state_dict()) == set(reference.RVQ(3, bias=True).state_dict())


@pytest.mark.parametrize("change", ["train", "load", "parent loads", "to"])
def test_what_was_prepared_is_dropped_when_weights_may_change(change):
    rvq, other = muomni_fast.RVQ().eval(), muomni_fast.RVQ()
    parent = torch.nn.ModuleDict({"rvq": rvq})
    codes = torch.randint(128, (9, 2))
    stale = rvq.prepare().decode(codes)
    if change == "train":
        parent.train()
        with torch.no_grad():
            rvq.proj_out.weight.mul_(2)
    elif change == "load":
        rvq.load_state_dict(other.state_dict())
    elif change == "parent loads":
        parent.load_state_dict({f"rvq.{k}": v for k, v in other.state_dict().items()})
    else:
        parent.to(torch.float64)
    assert not torch.equal(rvq.decode(codes).float(), stale)
    expected = reference.RVQ().to(rvq.proj_out.weight.dtype)
    expected.load_state_dict(rvq.state_dict())
    torch.testing.assert_close(rvq.decode(codes), expected.decode(codes))


def append_a_codebook(rvq: torch.nn.Module) -> None:
    rvq.codebooks.append(torch.nn.Embedding(128, 64))


def change_a_codeword(rvq: torch.nn.Module) -> None:
    with torch.no_grad():
        rvq.codebooks[0].weight[5] += 1


def replace_a_codebook(rvq: torch.nn.Module) -> None:
    rvq.codebooks[1] = torch.nn.Embedding(128, 64)


def leave_out_a_projection(rvq: torch.nn.Module) -> None:
    rvq.proj_out = torch.nn.Linear(64, 128)


@pytest.mark.parametrize(
    "change", [append_a_codebook, change_a_codeword, replace_a_codebook, leave_out_a_projection]
)
def test_what_was_prepared_is_never_used_with_other_weights(change):
    rvq, plain, mel = muomni_fast.RVQ().eval(), reference.RVQ().eval(), torch.randn(99, 128)
    plain.load_state_dict(rvq.state_dict())
    rvq.prepare().encode(mel)
    for module in (rvq, plain):
        torch.manual_seed(3)
        change(module)
    codes = rvq.encode(mel)
    assert torch.equal(codes, plain.encode(mel))
    torch.testing.assert_close(rvq.decode(codes), plain.decode(codes), rtol=1e-6, atol=1e-6)


def test_preparing_for_training_or_from_nan_is_refused():
    rvq = muomni_fast.RVQ()
    with pytest.raises(RuntimeError, match="expected eval mode"):
        rvq.prepare()
    rvq.codebooks[1].weight.data[3, 3] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        rvq.eval().prepare()


# Bad data


def test_bad_codes_and_frames_are_counted_once(monkeypatch):
    """By the interpreted kernels, forward and backward."""
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    muomni_fast.raise_if_errors()
    rvq = muomni_fast.RVQ(2, 16, 8, n_mels=12)
    codes = torch.randint(16, (20, 2))
    codes[7, 1] = 99
    rvq.decode(codes).sum().backward()
    with pytest.raises(muomni_fast.CodeRangeError, match="^1 codes"):
        muomni_fast.raise_if_errors()
    assert muomni_fast.raise_if_errors() == 0


@pytest.mark.parametrize("rows", [1, 40, 3000])
def test_frames_that_are_not_finite_are_counted_on_a_cpu(rows):
    muomni_fast.raise_if_errors()
    rvq, mel = muomni_fast.RVQ(), torch.randn(rows, 128)
    mel[-1, 3] = torch.nan
    assert not rvq.encode(mel)[-1].any()
    assert muomni_fast.raise_if_errors() == 1


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_any_view_encodes_like_its_copy(data):
    """Random slices, steps, orders of dimensions, expansions and offsets."""
    rvq = muomni_fast.RVQ(2, 20, 8, n_mels=6)
    base = torch.randn(*(data.draw(st.integers(6, 9)) for _ in range(3)))
    view = base.permute(data.draw(st.permutations(range(3))))
    view = view[data.draw(st.integers(0, 3)) :: data.draw(st.integers(1, 3))]
    first = data.draw(st.integers(0, view.shape[2] - 6))
    view = view[:, :, first : first + 6]
    if data.draw(st.booleans()):
        view = view[:, :1].expand(-1, 4, -1)
    assert torch.equal(rvq.encode(view), rvq.encode(view.clone()))
    assert torch.equal(rvq(view).mel, rvq(view.clone()).mel)


# One frame at a time


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_running_out_of_memory_changes_nothing(monkeypatch, backend):
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", backend)
    rvq, mel = muomni_fast.RVQ(2, 8, 4, n_mels=6).eval(), torch.randn(1, 6)
    codes = rvq.encode(mel)
    frames = rvq.decode(codes)
    for call in (
        lambda: rvq.encode(mel.expand(2**45, 6)),  # more than addresses reach
        lambda: rvq.decode(codes.expand(2**45, 2)),
    ):
        with pytest.raises(RuntimeError, match="allocate"):
            call()
    assert torch.equal(rvq.encode(mel), codes) and torch.equal(rvq.decode(codes), frames)
    assert muomni_fast.raise_if_errors() == 0


def test_streaming_frame_by_frame_equals_the_batch():
    rvq, mel = muomni_fast.RVQ().eval(), torch.randn(400, 128)
    codes = rvq.encode(mel)
    frames = rvq.decode(codes)
    for model in (rvq, copy.deepcopy(rvq).prepare()):
        single = torch.stack([model.encode(frame) for frame in mel])
        assert torch.equal(single, codes)
        decoded = torch.stack([model.decode(code) for code in codes])
        torch.testing.assert_close(decoded, frames, rtol=0, atol=1e-6)


def test_modules_and_arrays_are_no_codebooks():
    rvq, mel = muomni_fast.RVQ(), torch.randn(3, 64)
    for wrong, got in ((rvq.codebooks, "Embedding"), ([torch.randn(4, 64).numpy()] * 2, "ndarray")):
        with pytest.raises(TypeError, match=rf"codebooks\[0\]: expected a torch.Tensor, got {got}"):
            functional.rvq_encode(mel, wrong)
