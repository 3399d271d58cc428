"""The quantizer's steps for `gpu.py`: parity, bounds, repetition, times, tuning, memory checks."""

import dataclasses
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from gpu import Step
from rvq_problems import SHAPES, SMALL, Problem, hard_problems, problem
from timing import milliseconds
from torch import Tensor

import muomni_fast
from muomni_fast.kernels import certificate, configs


def parity(dry_run: bool) -> dict[str, Any]:
    """Mismatches of exact codes (must be none), the rate of fast ones, bit-equal repetitions."""
    found: dict[str, Any] = {}
    for name in SHAPES:
        case = problem(name, dry_run)
        codes = case.encode()
        limited = dataclasses.replace(case, mel=case.mel[:200_000])
        found[name] = {
            "mismatches": limited.mismatches(codes[:200_000]),
            "rows": len(limited.mel),
            "fast differs": float((case.encode(exact=False) != codes).any(1).double().mean()),
        }
        print(name, found[name])
    for name, case in hard_problems(dry_run).items():
        found[name] = {"mismatches": case.mismatches(case.encode()), "rows": len(case.mel)}
        print(name, found[name])
    wrong = {name: f["mismatches"] for name, f in found.items() if f["mismatches"]}
    assert not wrong, wrong
    return found


def repetition(dry_run: bool) -> dict[str, Any]:
    """250 forward and backward passes with the same bits."""
    device, runs = ("cpu", 3) if dry_run else ("cuda", 250)
    torch.manual_seed(0)
    rvq = muomni_fast.RVQ(codebook_size=SMALL if dry_run else 128, bias=True).to(device)
    mel = torch.randn(SMALL if dry_run else 60_000, 128, device=device, requires_grad=True)
    first = None
    for _ in range(runs):
        rvq.zero_grad()
        mel.grad = None
        out = rvq(mel)
        (out.mel.square().mean() + out.commitment_loss.sum() + out.codebook_loss.sum()).backward()
        bits = [out.codes, out.mel, mel.grad, *(p.grad for p in rvq.parameters())]
        bits = [b.detach().clone() for b in bits]
        first = first or bits
        assert all(torch.equal(a, b) for a, b in zip(first, bits, strict=True))
    return {"runs": runs}


@triton.jit
def _products_kernel(a_ptr, b_ptr, out_ptr, D: tl.constexpr, N: tl.constexpr, PREC: tl.constexpr):
    o_n, o_d = tl.arange(0, N), tl.arange(0, D)
    a = tl.load(a_ptr + tl.program_id(0) * N * D + o_n[:, None] * D + o_d[None, :])
    b = tl.load(b_ptr + o_n[None, :] * D + o_d[:, None])
    product = tl.dot(a, b, input_precision=PREC)
    out = out_ptr + tl.program_id(0) * N * N
    tl.store(out + o_n[:, None] * N + o_n[None, :], product)


def calibration(dry_run: bool) -> dict[str, Any]:
    """Largest error of a product of tensor cores, as a share of what the certificate allows."""
    device, programs = ("cpu", 1) if dry_run else ("cuda", 2000)
    found = {}
    for dim in (16, 64, 128, 256):
        for precision in ("tf32", "tf32x3"):
            a = torch.randn(programs * 64, dim, device=device)
            b = torch.randn(64, dim, device=device)
            out = torch.empty(programs * 64, 64, device=device)
            _products_kernel[(programs,)](a, b, out, D=dim, N=64, PREC=precision)
            error = (out.double() - a.double() @ b.double().t()).abs()
            scale = a.double().norm(dim=1)[:, None] * b.double().norm(dim=1)
            share = float((error / scale).max()) / certificate.score_beta(dim, precision)
            found[f"{precision}, {dim} terms"] = share
            assert share < 1, (precision, dim, share)
    return found


def torch_way(case: Problem) -> Tensor:
    """The usual formulation: one product and argmin per stage; inexact, and N x K in memory."""
    residual = case.mel if case.weight is None else case.mel @ case.weight.t()
    codes: list[Tensor] = []
    for stage, book in enumerate(case.books):
        scores = torch.addmm(case.half_norms[stage], residual, book.t(), alpha=-1)
        codes.append(scores.argmin(1))
        residual = residual - book[codes[-1]]
    return torch.stack(codes, 1)


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """The same as a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


CACHE = 128 << 20  # bytes of inputs to take turns with, so that none waits in a cache


def times(name: str, dry_run: bool) -> dict[str, float]:
    """Milliseconds of ours, exact and fast, and of torch eager, compiled and captured."""
    first = problem(name, dry_run)
    copies = 1 if dry_run else min(64, 1 + CACHE // (first.mel.numel() * 4))
    cases = [first] + [
        dataclasses.replace(first, mel=torch.randn_like(first.mel)) for _ in range(copies - 1)
    ]
    found: dict[str, float] = {}

    def measure(label: str, way: Callable[[Problem], object], graph: bool = False) -> None:
        run = lambda: [way(case) for case in cases]
        found[label] = milliseconds(captured(run) if graph else run) / copies

    exact, fast = Problem.encode, lambda case: case.encode(exact=False)
    measure("exact", exact)
    measure("fast", fast)
    measure("eager", torch_way)
    if not dry_run:
        measure("exact, graph", exact, graph=True)
        measure("fast, graph", fast, graph=True)
        before = torch.get_float32_matmul_precision()
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            try:
                measure(f"eager, {precision}, graph", torch_way, graph=True)
                compiled = torch.compile(
                    lambda mel: torch_way(dataclasses.replace(first, mel=mel)),
                    mode="max-autotune-no-cudagraphs",
                )
                way = lambda case, run=compiled: run(case.mel)
                measure(f"compiled, {precision}, graph", way, graph=True)
                torch._dynamo.reset()
            finally:
                torch.set_float32_matmul_precision(before)
    others = [t for label, t in found.items() if label.startswith(("eager", "compiled"))]
    found["best other / exact"] = min(others) / min(
        t for label, t in found.items() if label.startswith("exact")
    )
    return found


def one_stage_peers(dry_run: bool) -> dict[str, Any]:
    """rectokens and flash-kmeans, where installed: times and mismatches of one stage, 64-d, 128."""
    device, rows = ("cpu", SMALL) if dry_run else ("cuda", 1_000_000)
    torch.manual_seed(0)
    x, book = torch.randn(rows, 64, device=device), torch.randn(1, 128, 64, device=device)
    case = Problem(x, book, None)
    found: dict[str, Any] = {}
    ours = lambda *_: lambda: case.encode()[:, 0]
    peers = {"exact": ours, "rectokens": _rectokens, "flash-kmeans": _flash_kmeans}
    for name, peer in peers.items():
        try:
            run = peer(x, book[0])
        except ImportError as error:
            found[name] = str(error)
            continue
        wrong = case.mismatches(run().reshape(-1, 1).long())
        found[name] = {"ms": milliseconds(run), "mismatches": wrong, "rows": rows}
    return found


def _rectokens(x: Tensor, book: Tensor) -> Callable[[], Tensor]:
    from rectokens.ops.nn_quantize import nearest_neighbor_quantize

    return lambda: nearest_neighbor_quantize(x, book)


def _flash_kmeans(x: Tensor, book: Tensor) -> Callable[[], Tensor]:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    squares, norms = x.square().sum(-1)[None], book.square().sum(-1)[None]
    return lambda: euclid_assign_triton(x[None], book[None], squares, c_sq=norms)[0]


def training_times(dry_run: bool) -> dict[str, Any]:
    """Forward and backward of the default shape, fast against the reference."""
    device, rows = ("cpu", SMALL) if dry_run else ("cuda", 60_000)
    mel, found = torch.randn(rows, 128, device=device), {}
    for name, backend in (("fast", muomni_fast), ("reference", muomni_fast.reference)):
        rvq = backend.RVQ().to(device)

        def step(rvq: torch.nn.Module = rvq) -> None:
            out = rvq(mel)
            (out.mel.square().mean() + out.commitment_loss.sum()).backward()

        found[name] = milliseconds(step)
    return found


def tuning(dry_run: bool) -> dict[str, Any]:
    """Times of other tile sizes than the table's: what to put there."""
    found: dict[str, Any] = {}
    names = ("default",) if dry_run else ("default", "EnCodec 8 x 1024 x 128")
    for name in names:
        case = problem(name, dry_run)
        column = configs.architecture(case.mel.device)
        first = configs.encode_config(case.books.shape[2], case.mel.device)
        changes = [
            {},
            *({"precision": precision} for precision in ("tf32x3",)),
            *({"num_stages": stages} for stages in (1, 2, 3) if stages != first.num_stages),
            *({"block_n": n, "num_warps": w} for n, w in ((64, 4), (64, 8), (128, 8), (128, 4))),
            *({"block_k": k} for k in (32, 64, 128) if k != first.block_k),
            {"block_m": 64},
        ]
        for change in changes[: 2 if dry_run else None]:
            config = dataclasses.replace(first, **change)
            try:
                ms = milliseconds(lambda c=config, p=case: p.encode(config=c))
            except triton.runtime.errors.OutOfResources as error:
                ms = str(error)
            found[f"{name}, {column}: {change or 'as shipped'}"] = ms
            print(name, change, ms, flush=True)
    return found


def memory_checks(dry_run: bool) -> dict[str, Any]:
    """compute-sanitizer over small launches of every kernel, where it is installed."""
    return sanitized("import gpu_rvq; gpu_rvq.small_launches()", dry_run)


def sanitized(code: str, dry_run: bool) -> dict[str, Any]:
    """What every check of compute-sanitizer says of a piece of Python."""
    tool = shutil.which("compute-sanitizer")
    if dry_run or tool is None:
        return {"skipped": "no compute-sanitizer here"}
    found = {}
    for check in ("memcheck", "initcheck", "synccheck", "racecheck"):
        done = subprocess.run(
            [tool, f"--tool={check}", "--error-exitcode=9", sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        found[check] = {"exit": done.returncode, "end": done.stdout[-300:]}
        assert done.returncode == 0, found[check]
    return found


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


NAMES = list(SHAPES)
STEPS = [
    Step("rvq: parity", 240, parity),
    Step(f"rvq: times, {NAMES[0]}", 180, functools.partial(times, NAMES[0])),
    Step("rvq: calibration", 120, calibration),
    Step("rvq: repetition", 120, repetition),
    Step("rvq: tuning", 240, tuning),
    *(Step(f"rvq: times, {name}", 180, functools.partial(times, name)) for name in NAMES[1:]),
    Step("rvq: one-stage peers", 120, one_stage_peers),
    Step("rvq: training", 120, training_times),
    Step("rvq: memory checks", 300, memory_checks),
]
