"""The quantizer's steps for `gpu.py`: bounds, parity, repetition, times, memory checks."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl
from gpu_step import Figures, Step, captured, peaks, same_bits, sanitized
from rvq_problems import SHAPES, Problem, hard_problems, problem, torch_way
from timing import milliseconds
from torch import Tensor

import muomni_fast
from muomni_fast.kernels.rvq import certificate
from muomni_fast.kernels.rvq.table import to_tf32


def parity(figures: Figures) -> None:
    """Mismatches of exact codes (must be none), and the rate of fast ones."""
    cases = {name: functools.partial(problem, name) for name in SHAPES}
    for name, case in {**cases, **hard_problems()}.items():
        wrong = figures.take(f"{name}, mismatches", lambda make=case: _mismatches(make()))
        figures.check(wrong == 0, f"{name}: {wrong} mismatches")
    for name, make in cases.items():
        figures.take(f"{name}, share of rows where fast differs", lambda make=make: _differ(make()))


def _mismatches(case: Problem) -> int:
    limited = dataclasses.replace(case, mel=case.mel[:200_000])
    return limited.mismatches(case.encode()[:200_000])


def _differ(case: Problem) -> float:
    return float((case.encode(exact=False) != case.encode()).any(1).double().mean())


def repetition(figures: Figures) -> None:
    """Forward and backward passes with the same bits."""
    torch.manual_seed(0)
    rvq = muomni_fast.RVQ(bias=True).cuda()
    mel = torch.randn(60_000, 128, device="cuda", requires_grad=True)

    def once() -> list[Tensor]:
        rvq.zero_grad()
        mel.grad = None
        out = rvq(mel)
        (out.mel.square().mean() + out.commitment_loss.sum() + out.codebook_loss.sum()).backward()
        return [out.codes, out.mel, mel.grad, *(p.grad for p in rvq.parameters())]

    same_bits(figures, once)


@triton.jit
def _products_kernel(
    a_ptr, b_ptr, out_ptr, start, D: tl.constexpr, N: tl.constexpr, PREC: tl.constexpr
):
    o_n, o_d = tl.arange(0, N), tl.arange(0, D)
    a = tl.load(a_ptr + tl.program_id(0) * N * D + o_n[:, None] * D + o_d[None, :])
    b = tl.load(b_ptr + o_n[None, :] * D + o_d[:, None])
    product = tl.dot(a, b, tl.full([N, N], 0.0, tl.float32) + start, input_precision=PREC)
    out = out_ptr + tl.program_id(0) * N * N
    tl.store(out + o_n[:, None] * N + o_n[None, :], product)


def calibration(figures: Figures) -> None:
    """Largest error of a sum of tensor cores, as a share of what the certificate allows: of
    operands that are TF32 already (scores) or split in two (projections), onto nothing and onto a
    number as large as the sum."""
    programs = 2000
    for dim in (16, 64, 128, 256):
        a = torch.randn(programs * 64, dim, device="cuda")
        b = torch.randn(64, dim, device="cuda")
        for precision in ("tf32", "tf32x3"):
            x, y = (to_tf32(a), to_tf32(b)) if precision == "tf32" else (a, b)
            products = x.double() @ y.double().t()
            scale = x.double().norm(dim=1)[:, None] * y.double().norm(dim=1)
            for start in (0.0, float(dim)):
                out = torch.empty(programs * 64, 64, device="cuda")
                _products_kernel[(programs,)](x, y, out, start, D=dim, N=64, PREC=precision)
                error = (out.double() - products - start).abs() / (scale + start)
                share = float(error.max()) / certificate.sums_beta(dim, precision)
                label = f"{precision}, {dim} terms onto {start:g}"
                figures.put(label, share)
                figures.check(share < 1, f"{label}: {share} of the bound")


PRECISIONS = "highest", "high"  # float32, and TF32
CACHE = 128 << 20  # bytes of inputs to take turns with, so that none waits in a cache


def times(name: str, figures: Figures) -> None:
    """Milliseconds of ours, exact and fast, and of torch eager, captured too."""
    cases = turns(name)
    ways = {"exact": Problem.encode, "fast": lambda case: case.encode(exact=False)}
    for label, way in ways.items():
        measure(figures, label, cases, way)
        measure(figures, f"{label}, graph", cases, way, graph=True)
    figures.put("floor", floor_milliseconds(cases[0]))
    eager = lambda case: torch_way(*case.tensors)
    measure(figures, "eager", cases, eager)
    for precision in PRECISIONS:
        with multiplied(precision):
            measure(figures, f"eager, {precision}, graph", cases, eager, graph=True)


def compiled_times(name: str, figures: Figures) -> None:
    """The same of torch.compile; apart, because compiling takes longer than all of the above."""
    cases = turns(name)
    figures.put("floor", floor_milliseconds(cases[0]))
    for precision in PRECISIONS:
        with multiplied(precision):
            compiled = torch.compile(torch_way, mode="max-autotune-no-cudagraphs")
            way = lambda case, run=compiled: run(*case.tensors)
            measure(figures, f"compiled, {precision}, graph", cases, way, graph=True)
            torch._dynamo.reset()


def turns(name: str) -> list[Problem]:
    """A shape with inputs to take turns with."""
    first = problem(name)
    copies = min(64, 1 + CACHE // (first.mel.numel() * 4))
    drawn = [torch.randn_like(first.mel) for _ in range(copies - 1)]
    return [first, *(dataclasses.replace(first, mel=mel) for mel in drawn)]


def measure(
    figures: Figures,
    label: str,
    cases: list[Problem],
    way: Callable[[Problem], object],
    graph: bool = False,
) -> None:
    """Milliseconds of one case, launched by Python or as a graph of all."""
    run = lambda: [way(case) for case in cases]
    figures.take(label, lambda: milliseconds(captured(run) if graph else run) / len(cases))


@contextlib.contextmanager
def multiplied(precision: str) -> Iterator[None]:
    """torch's float32 products of that precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def floor_milliseconds(case: Problem) -> float:
    """What memory and one TF32 product for every score, and the projection, take at least."""
    bandwidth, flops = peaks()
    n_codebooks, size, dim = case.books.shape
    rows, n_mels = case.mel.shape
    moved = rows * (4 * n_mels + 8 * n_codebooks)
    products = 2 * rows * dim * (n_codebooks * size + (0 if case.weight is None else n_mels))
    return 1e3 * max(moved / bandwidth, products / (flops / 2))


def one_stage_peers(figures: Figures) -> None:
    """rectokens and flash-kmeans, where installed: times and mismatches of one stage, 64-d, 128."""
    torch.manual_seed(0)
    x, book = torch.randn(1_000_000, 64, device="cuda"), torch.randn(1, 128, 64, device="cuda")
    case = Problem(x, book, None)
    ours = lambda *_: lambda: case.encode()[:, 0]
    peers = {"exact": ours, "rectokens": _rectokens, "flash-kmeans": _flash_kmeans}
    for name, peer in peers.items():
        try:
            run = peer(x, book[0])
        except ImportError as error:
            figures.put(name, str(error))
            continue
        codes = run().reshape(-1, 1).long()
        figures.take(f"{name}, mismatches", functools.partial(case.mismatches, codes))
        figures.take(name, functools.partial(milliseconds, run))


def _rectokens(x: Tensor, book: Tensor) -> Callable[[], Tensor]:
    from rectokens.ops.nn_quantize import nearest_neighbor_quantize

    return lambda: nearest_neighbor_quantize(x, book)


def _flash_kmeans(x: Tensor, book: Tensor) -> Callable[[], Tensor]:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    squares, norms = x.square().sum(-1)[None], book.square().sum(-1)[None]
    return lambda: euclid_assign_triton(x[None], book[None], squares, c_sq=norms)[0]


def training_times(figures: Figures) -> None:
    """Forward and backward of the default shape, fast against the reference."""
    mel = torch.randn(60_000, 128, device="cuda")
    for name, backend in (("fast", muomni_fast), ("reference", muomni_fast.reference)):
        rvq = backend.RVQ().cuda()

        def step(rvq: torch.nn.Module = rvq) -> None:
            out = rvq(mel)
            (out.mel.square().mean() + out.commitment_loss.sum()).backward()

        figures.take(name, lambda: milliseconds(step))


def memory_checks(figures: Figures) -> None:
    """compute-sanitizer over small launches of every kernel, where it is installed."""
    sanitized(figures, "import gpu_rvq; gpu_rvq.small_launches()")


def small_launches() -> None:
    """A few thousand frames through every kernel, with bad ones among them."""
    rvq = muomni_fast.RVQ(bias=True).cuda()
    mel = torch.randn(3001, 128, device="cuda")
    mel[7, 3] = torch.nan
    rvq(mel).mel.sum().backward()
    codes = rvq.encode(mel)
    codes[5, 1] = 4096
    rvq.decode(codes)
    rvq.eval().prepare().decode(codes)
    torch.cuda.synchronize()


def _times(name: str) -> Step:
    return Step(f"rvq: times, {name}", 60, functools.partial(times, name))


def _compiled(name: str) -> Step:
    return Step(f"rvq: compiled, {name}", 120, functools.partial(compiled_times, name))


MAIN = "default", "EnCodec 8 x 1024 x 128"
STEPS = {
    "calibration": Step("rvq: calibration", 60, calibration),
    "parity": Step("rvq: parity", 150, parity),
    "main times": [_times(name) for name in MAIN],
    "compiled times": [_compiled(name) for name in MAIN],
    "repetition": Step("rvq: repetition", 60, repetition),
    "memory checks": Step("rvq: memory checks", 240, memory_checks),
    "training": Step("rvq: training", 60, training_times),
    "other times": [_times(name) for name in SHAPES if name not in MAIN],
    "peers": Step("rvq: one-stage peers", 60, one_stage_peers),
}
