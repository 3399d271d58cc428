"""The vocoder's steps for `gpu.py`: parity, repetition, times, tuning, memory checks."""

import contextlib
import copy
import dataclasses
import functools
import unittest.mock
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from gpu import Step
from gpu_rvq import captured, sanitized
from timing import milliseconds
from torch import Tensor
from vocoder_problems import (
    GENERATORS,
    TINY,
    generator,
    in_float64,
    keep_variance,
    snr_db,
    worst_window_db,
)

import muomni_fast
from muomni_fast import fused, reference, triton_vocoder
from muomni_fast.kernels import conv_configs
from muomni_fast.kernels.conv_configs import CONV, ConvConfig, StripConfig

# name -> generator, items, seconds
SHAPES = {
    f"{name}, {items} x 1 s": (name, items) for name in ("default", "v1") for items in (1, 16)
}
# What both sides may round operands to: dtype, whether torch may take TF32.
MODES = {
    "fp32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
}
SMALL = TINY | {
    "upsample_initial_channel": 16,
    "resblock_kernel_sizes": (3, 5),
    "resblock_dilation_sizes": ((1, 2), (1, 3)),
}


def device_of(dry_run: bool) -> str:
    """Where a step runs."""
    return "cpu" if dry_run else "cuda"


@contextlib.contextmanager
def mode(name: str) -> Iterator[torch.dtype]:
    """TF32 allowed or not; yields the dtype."""
    dtype, tf32 = MODES[name]
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield dtype
    finally:
        torch.backends.cudnn.allow_tf32 = before


def always_grouped(*_: Any) -> None:
    """Instead of `strip_config`: every stage step by step."""


def always_strip(x: Tensor, taps: Any, dilations: Any, paired: bool) -> StripConfig:
    """Instead of `strip_config`: every stage in one launch."""
    channels = x.shape[2]
    tile, _ = conv_configs.strip_tile(x) or (conv_configs.conv_config(channels, channels, x), 1)
    programs = conv_configs.multiprocessors(x.device)
    return conv_configs.strip_of(x, taps, dilations, paired, tile, programs, 512)


PATHS: dict[str, Any] = {"grouped": always_grouped, "strip": always_strip}


def path(name: str) -> Any:
    """A context in which every stage takes this path."""
    return unittest.mock.patch.object(triton_vocoder, "strip_config", PATHS[name])


def problem(name: str, items: int, frames: int, dry_run: bool) -> tuple[Any, Tensor]:
    """A reference generator and a mel for it, on the device."""
    torch.manual_seed(0)
    model = generator(name, **(SMALL if dry_run else {}))
    mel = torch.randn(min(items, 2) if dry_run else items, model.n_mels, 2 if dry_run else frames)
    return model.to(device_of(dry_run)), mel.to(device_of(dry_run))


def fast(model: reference.HiFiGANVocoder) -> muomni_fast.HiFiGANVocoder:
    """The same weights in the fast module."""
    twin = muomni_fast.HiFiGANVocoder(**model.config)
    twin.load_state_dict(model.state_dict())
    return twin.to(next(model.parameters())).eval()


def parity(dry_run: bool) -> dict[str, Any]:
    """SNR against float64 of ours and of torch in the same mode: ours at most 3 dB below."""
    found: dict[str, Any] = {}
    for name in ("default", "v3") if dry_run else GENERATORS:
        model, mel = problem(name, 2, 40, dry_run)
        with torch.no_grad():
            right = in_float64(model)(mel.cpu().double())
        for mode_name in ("fp32",) if dry_run else MODES:
            with mode(mode_name) as dtype, torch.no_grad():
                theirs = copy.deepcopy(model).to(dtype)
                ways = {"torch": theirs}
                audio = {"torch": theirs(mel.to(dtype)).cpu()}
                for way in PATHS:
                    with path(way):
                        ways[way] = fast(theirs).prepare()
                        audio[way] = ways[way](mel.to(dtype)).cpu()
            figures = {
                way: (round(snr_db(a, right), 1), round(worst_window_db(a, right), 1))
                for way, a in audio.items()
            }
            figures["same bits"] = torch.equal(audio["grouped"], audio["strip"])
            found[f"{name}, {mode_name}"] = figures
            print(name, mode_name, figures, flush=True)
    for name, figures in found.items():
        for way in PATHS:
            for ours, theirs in zip(figures[way], figures["torch"], strict=True):
                assert ours >= theirs - 3, (name, way, figures)
    return found


def gradient_parity(dry_run: bool) -> dict[str, Any]:
    """The lowest SNR of all gradients of a stage (V1's shape, 64 channels) against float64."""
    device, found = device_of(dry_run), {}
    kernels, dilations = ((3, 5), ((1, 2),) * 2) if dry_run else ((3, 7, 11), ((1, 3, 5),) * 3)
    channels, rows = (8, 40) if dry_run else (64, 4000)
    torch.manual_seed(0)
    model = keep_variance(reference.MRF(channels, kernels, dilations))
    x, grad = torch.randn(2, 2, channels, rows).unbind()

    def gradients(m: torch.nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        m.zero_grad()
        m(x).backward(grad)
        return [x.grad.cpu(), *(p.grad.cpu() for p in m.parameters())]

    right = gradients(in_float64(model), x.double(), grad.double())
    twin = muomni_fast.MRF(channels, kernels, dilations)
    twin.load_state_dict(model.state_dict())
    for mode_name in ("fp32",) if dry_run else MODES:
        with mode(mode_name) as dtype:
            for way, m in (("torch", model), ("fast", twin)):
                m = copy.deepcopy(m).to(device, dtype)
                got = gradients(m, x.to(device, dtype), grad.to(device, dtype))
                lowest = min(snr_db(a, b) for a, b in zip(got, right, strict=True))
                found[f"{mode_name}, {way}"] = round(lowest, 1)
        assert found[f"{mode_name}, fast"] >= found[f"{mode_name}, torch"] - 3, found
    return found


def repetition(dry_run: bool) -> dict[str, Any]:
    """250 forward and backward passes, and items alone and in batches, with the same bits."""
    runs = 2 if dry_run else 250
    model, mel = problem("default", 2, 100, dry_run)
    twin, mel = fast(model).train(), mel.requires_grad_()
    first: list[Tensor] = []
    for _ in range(runs):
        twin.zero_grad()
        mel.grad = None
        audio = twin(mel)
        audio.square().sum().backward()
        bits = [t.detach().clone() for t in (audio, mel.grad, *(p.grad for p in twin.parameters()))]
        first = first or bits
        assert all(torch.equal(a, b) for a, b in zip(first, bits, strict=True))
    twin, found = twin.eval(), {"runs": runs}
    frames = [mel.shape[2], mel.shape[2] - 1]
    with torch.no_grad():
        together = twin(mel, torch.tensor(frames))
        for item, (length, audio) in enumerate(zip(frames, together, strict=True)):
            alone = twin(mel[item : item + 1, :, :length])[0]
            found[f"item {item} alone, same bits"] = torch.equal(audio[: len(alone)], alone)
    return found


def floor_milliseconds(model: reference.HiFiGANVocoder, mel: Tensor, dtype: torch.dtype) -> float:
    """Time of its multiplications at an H200's measured 790 TFLOP/s (half of that in TF32)."""
    rows, flops = mel.shape[2], 0.0
    flops += 2 * rows * model.conv_pre.weight.numel()
    for stage, up in enumerate(model.ups):
        flops += 2 * rows * up.weight.numel()
        rows *= up.stride[0]
        blocks = model.resblocks[stage * model.n_kernels : (stage + 1) * model.n_kernels]
        weights = fused.tensors_of_blocks(blocks)[::2]
        flops += 2 * rows * sum(weight.numel() for weight in weights)
    flops += 2 * rows * model.conv_post.weight.numel()
    return 1e3 * mel.shape[0] * flops / (790e12 if dtype != torch.float32 else 395e12)


def times(name: str, mode_name: str, dry_run: bool) -> dict[str, float]:
    """Milliseconds of ours by path and of torch eager, compiled and captured."""
    preset, items = SHAPES[name]
    frames = 87 if preset != "default" else 63
    model, mel = problem(preset, items, frames, dry_run)
    found: dict[str, float] = {}
    with mode(mode_name) as dtype, torch.inference_mode():
        model, mel = model.to(dtype), mel.to(dtype)

        def measure(label: str, run: Callable[[], object]) -> None:
            found[label] = milliseconds(run)
            if not dry_run:
                found[f"{label}, graph"] = milliseconds(captured(run))

        twin = fast(model).prepare()
        measure("ours", lambda: twin(mel))
        for way in PATHS:
            with path(way):
                measure(f"ours, {way}", lambda: twin(mel))
        measure("eager", lambda: model(mel))
        if not dry_run:
            compiled = torch.compile(model, mode="max-autotune-no-cudagraphs")
            measure("compiled", lambda: compiled(mel))
    others = [t for label, t in found.items() if not label.startswith("ours")]
    ours = min(t for label, t in found.items() if label in ("ours", "ours, graph"))
    found["best other / ours"] = min(others) / ours
    found["floor / ours"] = floor_milliseconds(model, mel, dtype) / ours
    hop_seconds = model.hop_length / (16_000 if preset == "default" else 22_050)
    found["x real time"] = 1e3 * items * mel.shape[2] * hop_seconds / ours
    return found


def training_times(dry_run: bool) -> dict[str, Any]:
    """Forward and backward of the generator, 16 x 8,192 samples, fast against the reference."""
    found: dict[str, Any] = {}
    for name in ("default", "v1"):
        model, mel = problem(name, 1 if dry_run else 16, 32, dry_run)
        for label, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            for way, m in (("fast", fast(model).train()), ("reference", model.train())):

                def step(m: torch.nn.Module = m, mel: Tensor = mel, dtype: Any = dtype) -> None:
                    on = dtype != torch.float32
                    with torch.autocast(mel.device.type, torch.bfloat16, enabled=on):
                        audio = m(mel)
                    audio.float().square().mean().backward()

                found[f"{name}, {label}, {way}"] = milliseconds(step)
            ratio = found[f"{name}, {label}, reference"] / found[f"{name}, {label}, fast"]
            found[f"{name}, {label}, reference / fast"] = ratio
    return found


def tuning(dry_run: bool) -> dict[str, Any]:
    """Times of a stage under other tiles than the table's, by path: what to put there."""
    found: dict[str, Any] = {}
    device = device_of(dry_run)
    for channels, rows in (
        ((8, 40),) if dry_run else ((16, 16000), (32, 8000), (64, 4000), (128, 500))
    ):
        torch.manual_seed(0)
        mrf = muomni_fast.MRF(channels, (3, 5, 7), ((1, 2),) * 3)
        mrf = mrf.to(device, torch.float32 if dry_run else torch.bfloat16)
        blocks = triton_vocoder.Blocks("1", (3, 5, 7), ((1, 2),) * 3)
        tensors = [t.detach() for t in fused.tensors_of_blocks(list(mrf.resblocks))]
        x = torch.randn(1 if dry_run else 16, rows, channels, device=device, dtype=tensors[0].dtype)
        packed = triton_vocoder.pack_blocks(tensors, blocks)
        base = conv_configs.conv_config(channels, channels, x)
        changes = [
            {},
            *({"block_t": t, "num_warps": w} for t in (64, 128, 256) for w in (4, 8)),
            *({"num_stages": s} for s in (2, 4, 5)),
            *({"block_k": k} for k in (32, 128)),
            *({"block_n": n} for n in (32, 64) if n < channels),
        ]
        for change in changes[: 2 if dry_run else None]:
            config: ConvConfig = dataclasses.replace(base, **change)
            for way in PATHS:
                with (
                    path(way),
                    unittest.mock.patch.dict(CONV, dict.fromkeys(CONV, config)),
                ):
                    try:
                        run = functools.partial(triton_vocoder.mrf, x, packed, blocks)
                        ms: Any = milliseconds(run, budget=0.1)
                    except triton.runtime.errors.OutOfResources as error:
                        ms = str(error)
                found[f"{channels} channels, {way}: {change or 'as shipped'}"] = ms
            print(channels, change, ms, flush=True)
    return found


def memory_checks(dry_run: bool) -> dict[str, Any]:
    """compute-sanitizer over a small training step and both paths, where it is installed."""
    return sanitized("import gpu_vocoder; gpu_vocoder.small_launches()", dry_run)


def small_launches() -> None:
    """A few frames through every kernel."""
    model, mel = problem("default", 2, 5, dry_run=False)
    twin = fast(model)
    mel.requires_grad_()
    twin.train()(mel, torch.tensor([5, 3])).sum().backward()
    for way in PATHS:
        with path(way), torch.no_grad():
            twin.eval()(mel)
    torch.cuda.synchronize()


STEPS = [
    Step("vocoder: parity", 300, parity),
    *(
        Step(f"vocoder: times, {name}, {m}", 180, functools.partial(times, name, m))
        for m in ("bf16", "tf32")
        for name in SHAPES
    ),
    Step("vocoder: gradients", 120, gradient_parity),
    Step("vocoder: training", 180, training_times),
    Step("vocoder: repetition", 120, repetition),
    Step("vocoder: tuning", 300, tuning),
    Step("vocoder: memory checks", 300, memory_checks),
]
