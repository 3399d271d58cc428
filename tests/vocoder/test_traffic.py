"""What a generator moves through device memory, counted: the kernels' in the interpreter, eager's
by its operators."""

import numpy as np
import pytest
import torch
from support.interpreter import Launch, watched
from torch.utils._python_dispatch import TorchDispatchMode

import muomni_fast
from muomni_fast import reference
from muomni_fast.kernels.vocoder import configs as conv_configs
from muomni_fast.kernels.vocoder.configs import MOST_SCRATCH, ConvConfig, StripConfig
from muomni_fast.vocoder import triton_mrf

pytestmark = pytest.mark.long

FRAMES = 1000  # of 16 x 1 s


class Traffic(TorchDispatchMode):
    """Bytes of the inputs and outputs of all operators that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [t for t in (*args, result) if isinstance(t, torch.Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return result


def per_frame(count) -> float:
    """Of FRAMES frames, from two short mels: weights once, the rest for every frame."""
    few, more = count(2), count(4)
    each = (more - few) / 2
    return each + (few - 2 * each) / FRAMES


def eager_bytes(frames: int) -> int:
    model = reference.HiFiGANVocoder().eval()
    with torch.no_grad(), Traffic() as traffic:
        model(torch.randn(1, 128, frames))
    return traffic.bytes


def device_bytes(launch: Launch) -> int:
    """Distinct bytes of a launch, without scratch that stays in the last cache."""
    first, last = launch.tensors.get("scratch_ptr", (0, 0))
    assert last - first <= MOST_SCRATCH
    found: dict[int, list[np.ndarray]] = {}
    for accesses in launch.reads + launch.writes:
        for addresses, size in accesses:
            outside = addresses[(addresses < first) | (addresses >= last)]
            found.setdefault(size, []).append(np.unique(outside))
    return sum(size * len(np.unique(np.concatenate(some))) for size, some in found.items())


@pytest.mark.parametrize("path", ["grouped", "strip"])
def test_six_times_less_than_eager(monkeypatch, path):
    """bfloat16 kernels against eager float32, the default shape, 16 x 1 s."""
    tile = ConvConfig(512, 128, 128, 4, 1)
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    monkeypatch.setattr(conv_configs, "INTERPRETER_TILE", tile)
    if path == "strip":
        config = lambda x, *_: StripConfig(tile.fitted(x.shape[2], x.shape[2]), 2, 512)
        monkeypatch.setattr(triton_mrf, "strip_config", config)
    model = muomni_fast.HiFiGANVocoder().bfloat16().eval().prepare()

    def kernel_bytes(frames: int) -> int:
        with watched() as launches:
            model(torch.randn(1, 128, frames, dtype=torch.bfloat16))
        return sum(map(device_bytes, launches))

    ours, eager = per_frame(kernel_bytes), per_frame(eager_bytes)
    print(f"{path}: {ours / 1e6:.3f} MB a frame, eager {eager / 1e6:.2f} MB, {eager / ours:.1f} x")
    assert eager / ours >= 6
