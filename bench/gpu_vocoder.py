"""The vocoder's steps for `gpu.py`: parity, repetition, times, memory checks."""

import contextlib
import copy
import functools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import tests_path  # noqa: F401
import torch
from gpu_step import Figures, Step, captured, peaks, same_bits, sanitized
from support.vocoder_problems import (
    GENERATORS,
    PATHS,
    generator,
    in_float64,
    keep_variance,
    path,
    snr_db,
    worst_window_db,
)
from timing import milliseconds
from torch import Tensor

import muomni_fast
from muomni_fast import reference
from muomni_fast.vocoder.plan import plan_of_blocks

# name -> generator, items; a second of audio each
SHAPES = {
    f"{name}, {items} x 1 s": (name, items) for items in (16, 1) for name in ("default", "v1")
}
# What both sides may round operands to: dtype, and how float32 is multiplied.
MODES = {
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
}
# torch multiplies few channels in float32 where it may round to TF32, as is measured here; so what
# TF32 must reach is float16, whose numbers are as short.
PEERS = {"bf16": "bf16", "fp16": "fp16", "tf32": "fp16", "fp32": "fp32"}


@contextlib.contextmanager
def mode(name: str) -> Iterator[torch.dtype]:
    """Float32 multiplied that way; yields the dtype."""
    dtype, precision = MODES[name]
    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, precision
    try:
        yield dtype
    finally:
        conv.fp32_precision = before


def problem(name: str, items: int, frames: int) -> tuple[Any, Tensor]:
    """A reference generator and a mel for it, on the GPU."""
    torch.manual_seed(0)
    model = generator(name).cuda()
    return model, torch.randn(items, model.n_mels, frames, device="cuda")


def fast(model: reference.HiFiGANVocoder) -> muomni_fast.HiFiGANVocoder:
    """The same weights in the fast module."""
    with torch.device("meta"):
        twin = muomni_fast.HiFiGANVocoder(**model.config)
    twin.load_state_dict(model.state_dict(), assign=True)
    return twin.eval()


def parity(figures: Figures) -> None:
    """SNR against float64 of ours and of torch: ours at most 3 dB below its peer's."""
    for name in GENERATORS:
        peers: dict[str, tuple[float, float]] = {}
        model, mel = problem(name, 2, 40)
        with torch.no_grad():
            right = in_float64(model)(mel.cpu().double())
        for mode_name in MODES:
            with mode(mode_name) as dtype, torch.no_grad():
                theirs = copy.deepcopy(model).to(dtype)
                audio = {"torch": theirs(mel.to(dtype)).cpu()}
                twin = fast(theirs).prepare()
                for way in PATHS:
                    with path(way):
                        audio[way] = twin(mel.to(dtype)).cpu()
            label, snr = f"{name}, {mode_name}", {}
            for way, found in audio.items():
                snr[way] = snr_db(found, right), worst_window_db(found, right)
                figures.put(f"{label}, {way}, dB and worst window", snr[way])
            figures.put(f"{label}, same bits", torch.equal(audio["grouped"], audio["strip"]))
            peers[mode_name] = snr["torch"]
            peer = peers[PEERS[mode_name]]
            for way in PATHS:
                fine = all(ours >= theirs - 3 for ours, theirs in zip(snr[way], peer, strict=True))
                figures.check(fine, f"{label}, {way}: {snr[way]} dB, torch {peer}")


DRAWS = 5


def gradient_parity(figures: Figures) -> None:
    """SNR against float64 of a stage's gradients (V1's shape, 64 channels): the lowest of all its
    weights, the median of several draws. A single number near zero, on whose other side rounding
    puts it, changes a gradient by 57 dB below it, and some draws have one."""
    lowest: dict[tuple[str, str], list[float]] = {}
    for draw in range(DRAWS):
        torch.manual_seed(draw)
        model = keep_variance(reference.MRF(64, (3, 7, 11), ((1, 3, 5),) * 3))
        x, grad = torch.randn(2, 2, 64, 4000).unbind()
        right = _gradients(in_float64(model), x.double(), grad.double())
        twin = muomni_fast.MRF(64, (3, 7, 11), ((1, 3, 5),) * 3)
        twin.load_state_dict(model.state_dict())
        for name in MODES:
            with mode(name) as dtype:
                for way, m in (("fast", twin), ("torch", model)):
                    m = copy.deepcopy(m).to("cuda", dtype)
                    found = _gradients(m, x.to("cuda", dtype), grad.to("cuda", dtype))
                    least = min(snr_db(a, b) for a, b in zip(found, right, strict=True))
                    lowest.setdefault((name, way), []).append(least)
    for (name, way), found in lowest.items():
        figures.put(f"{name}, {way}, dB", statistics.median(found))
    for name in MODES:
        fast, torchs = (statistics.median(lowest[name, way]) for way in ("fast", "torch"))
        figures.check(fast >= torchs - 3, f"gradients in {name}: {fast} dB, torch {torchs}")


def _gradients(m: torch.nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    m.zero_grad()
    m(x).backward(grad)
    return [x.grad.cpu(), *(p.grad.cpu() for p in m.parameters())]


def repetition(figures: Figures) -> None:
    """Forward and backward passes, and items alone and in batches, with the same bits."""
    model, mel = problem("default", 2, 100)
    twin, mel = fast(model).train(), mel.requires_grad_()

    def once() -> list[Tensor]:
        twin.zero_grad()
        mel.grad = None
        audio = twin(mel)
        audio.square().sum().backward()
        return [audio, mel.grad, *(p.grad for p in twin.parameters())]

    same_bits(figures, once)
    twin.eval()
    with torch.no_grad():
        together = twin(mel, torch.tensor([100, 99], device="cuda"))
        for item, length in enumerate((100, 99)):
            alone = twin(mel[item : item + 1, :, :length])[0]
            same = torch.equal(together[item, : len(alone)], alone)
            figures.put(f"item {item} alone, same bits", same)
            figures.check(same, f"item {item} alone has other bits")


def floor_milliseconds(model: reference.HiFiGANVocoder, mel: Tensor) -> float:
    """Time of its multiplications at this card's best; TF32 takes twice as long as bfloat16."""
    rows, flops = mel.shape[2], 0.0
    flops += 2 * rows * model.conv_pre.weight.numel()
    for level, up in enumerate(model.ups):
        flops += 2 * rows * up.weight.numel()
        rows *= up.stride[0]
        blocks = model.resblocks[level * model.n_kernels : (level + 1) * model.n_kernels]
        weights = plan_of_blocks(blocks).tensors()[::2]
        flops += 2 * rows * sum(weight.numel() for weight in weights)
    flops += 2 * rows * model.conv_post.weight.numel()
    return 1e3 * mel.shape[0] * flops / peaks()[1] * (1 if mel.itemsize == 2 else 2)


def times(name: str, mode_name: str, figures: Figures) -> None:
    """Milliseconds of ours by path and of torch eager, each launched by Python and captured."""
    with shape(name, mode_name) as (model, mel):
        twin = fast(model).prepare()
        measure(figures, "ours", lambda: twin(mel))
        figures.put("floor", floor_milliseconds(model, mel))
        for way in PATHS:
            with path(way):
                measure(figures, f"ours, {way}", lambda: twin(mel))
        measure(figures, "eager", lambda: model(mel))


def compiled_times(name: str, mode_name: str, figures: Figures) -> None:
    """The same of torch.compile; apart, because compiling takes longer than all of the above."""
    with shape(name, mode_name) as (model, mel):
        figures.put("floor", floor_milliseconds(model, mel))
        compiled = torch.compile(model, mode="max-autotune-no-cudagraphs")
        measure(figures, "compiled", lambda: compiled(mel))


@contextlib.contextmanager
def shape(name: str, mode_name: str) -> Iterator[tuple[reference.HiFiGANVocoder, Tensor]]:
    """A generator and its mel to be timed in a mode."""
    preset, items = SHAPES[name]
    model, mel = problem(preset, items, 63 if preset == "default" else 87)
    with mode(mode_name) as dtype, torch.inference_mode():
        yield model.to(dtype), mel.to(dtype)


def measure(figures: Figures, label: str, run: Callable[[], object]) -> None:
    """Milliseconds of a call, launched by Python and as a graph."""
    figures.take(label, lambda: milliseconds(run))
    figures.take(f"{label}, graph", lambda: milliseconds(captured(run)))


def training_times(graph: bool, figures: Figures) -> None:
    """Forward and backward of the generator, 16 x 8,192 samples, fast against the reference:
    launched by Python, or as a graph, which shows what the GPU alone takes."""
    for name in ("default", "v1"):
        model, mel = problem(name, 16, 32)
        for label, on in (("bf16", True), ("fp32", False)):
            for way, m in (("fast", fast(model).train()), ("reference", model.train())):

                def step(m: torch.nn.Module = m, mel: Tensor = mel, on: bool = on) -> None:
                    m.zero_grad()
                    # Nothing is kept from one step to the next, as weights change between them.
                    with torch.autocast(
                        mel.device.type, torch.bfloat16, enabled=on, cache_enabled=False
                    ):
                        audio = m(mel)
                    audio.float().square().mean().backward()

                take = lambda run=step: milliseconds(captured(run) if graph else run)
                figures.take(f"{name}, {label}, {way}", take)


def memory_checks(figures: Figures) -> None:
    """compute-sanitizer over a small training step and both paths, where it is installed."""
    sanitized(figures, "import gpu_vocoder; gpu_vocoder.small_launches()")


def small_launches() -> None:
    """A few frames through every kernel."""
    model, mel = problem("default", 2, 5)
    twin = fast(model)
    mel.requires_grad_()
    twin.train()(mel, torch.tensor([5, 3], device="cuda")).sum().backward()
    for way in PATHS:
        with path(way), torch.no_grad():
            twin.eval()(mel)
    torch.cuda.synchronize()


def _times(name: str, mode_name: str) -> Step:
    run = functools.partial(times, name, mode_name)
    return Step(f"vocoder: times, {name}, {mode_name}", 60, run)


def _compiled(name: str) -> Step:
    run = functools.partial(compiled_times, name, "bf16")
    return Step(f"vocoder: compiled, {name}, bf16", 120, run)


STEPS = {
    "parity": Step("vocoder: parity", 150, parity),
    "main times": [_times(name, "bf16") for name in SHAPES],
    "compiled times": [_compiled(name) for name in SHAPES],
    "repetition": Step("vocoder: repetition", 60, repetition),
    "gradients": Step("vocoder: gradients", 60, gradient_parity),
    "memory checks": Step("vocoder: memory checks", 240, memory_checks),
    "other times": [_times(name, "tf32") for name in SHAPES],
    "training": Step("vocoder: training", 120, functools.partial(training_times, False)),
    "training in a graph": Step(
        "vocoder: training, in a graph", 90, functools.partial(training_times, True)
    ),
}
