"""Grids: a GPU takes 65,535 programs in the second and third dimension, and 2^31 - 1 in the first,
so whatever may grow is in the first."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from muomni_fast import kernels, reference
from muomni_fast.vocoder import generator as generators
from muomni_fast.vocoder.plan import plan_of_generator

pytest.importorskip("triton")

from muomni_fast.kernels.rvq.code_sums import _code_sums_kernel, code_sums  # noqa: E402
from muomni_fast.kernels.rvq.decode import rvq_decode  # noqa: E402
from muomni_fast.kernels.rvq.encode import rvq_encode  # noqa: E402
from muomni_fast.kernels.talker.sample import sample  # noqa: E402
from muomni_fast.vocoder import triton_backend  # noqa: E402

Grids = dict[str, list[tuple[int, ...]]]


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> Grids:
    """The grids of every kernel that is launched, by its name; nothing runs."""
    found: Grids = {}

    def launched(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        found.setdefault(kernel.fn.__name__, []).append(grid)
        return lambda **named: None

    monkeypatch.setattr(type(_code_sums_kernel), "__getitem__", launched)
    return found


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without memory."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def quantize(rows: int, n_codebooks: int, size: int, dim: int) -> None:
    """Every launch of a quantizer."""
    books, count = meta(n_codebooks, size, dim), meta(1, dtype=torch.int32)
    codes = meta(rows, n_codebooks, dtype=torch.int64)
    rvq_encode(meta(rows, dim), books, None, None, None, count)
    rvq_decode(codes, books, None, None, count)
    code_sums(codes[:, 0], meta(rows, dim), size)


def generate(batch: int, frames: int, dtype: torch.dtype, train: bool) -> None:
    """Every launch of a generator, and of its gradients."""
    with torch.device("meta"):
        model = reference.HiFiGANVocoder().to(dtype)
    plan = plan_of_generator(model)
    tensors, mel = [t.detach() for t in plan.tensors()], meta(batch, 128, frames, dtype=dtype)
    layers = triton_backend.layers(tensors, plan.shape)
    audio, kept = generators.forward(triton_backend, mel, layers, plan.shape, None, train)
    if train:
        needs = [True] * (1 + len(tensors))
        generators.backward(
            triton_backend, audio, audio, mel, kept, tensors, plan.shape, None, needs
        )


def draw(batch: int, n_codebooks: int, size: int, dim: int) -> None:
    """The end of a Talker's step."""
    sample(
        logits=meta(batch, n_codebooks, size + 1),
        table=meta(n_codebooks * (size + 2), dim),
        step=meta(1, dtype=torch.int64),
        end=meta(batch, dtype=torch.int64),
        row=meta(batch, n_codebooks, dtype=torch.int64),
        x=meta(batch, dim),
        max_frames=10,
        temperature=1.0,
        seed=0,
    )


LARGE: dict[str, Callable[[], None]] = {  # terabytes, of each kind
    "frames": lambda: quantize(2**35, 2, 128, 64),
    "codes": lambda: quantize(2**20, 32, 2**22, 8),
    "texts": lambda: draw(2**25, 64, 4096, 1024),
    "dimensions": lambda: quantize(2**21, 2**17, 16, 512),
    "items": lambda: generate(2**25, 1, torch.bfloat16, True),
    "rows": lambda: generate(2, 2**26, torch.bfloat16, False),
    "rows in float32": lambda: generate(2, 2**25, torch.float32, True),
}


@pytest.mark.parametrize("name", LARGE)
def test_what_grows_is_in_the_first_dimension(grids, name):
    LARGE[name]()
    assert max(grid[0] for each in grids.values() for grid in each) > 65_535
    for kernel, each in grids.items():
        for first, *others in each:
            assert 0 < first < 2**31, kernel
            assert all(other <= 65_535 for other in others), kernel


def test_every_kernel_is_among_them(grids):
    for launch in LARGE.values():
        launch()
    names = set()
    for module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, type(_code_sums_kernel)) and name.endswith("_kernel"):
                names.add(name)
    assert set(grids) == names and len(names) >= 9
