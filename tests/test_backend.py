"""Which backend is chosen, and what is said about it: without a GPU, tensors are fake ones on CUDA,
and torch is made to say what the GPU is."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator

import pytest
import torch

import muomni_fast
from muomni_fast import BackendUnavailableError, backend, kernel_cache


def test_what_keeps_a_kernel_from_running(monkeypatch):
    """Device, shape, installation and what is asked for decide."""
    x, books = torch.zeros(1, 8), torch.zeros(2, 16, 8)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # Interpreted kernels run only when asked for.
    assert backend.obstacle("rvq_encode", x) == "the tensors are not on a CUDA device"
    assert backend.choose("rvq_encode", x) == "torch"
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    assert backend.choose("rvq_encode", x, books) == "triton"
    assert backend.explain("rvq_encode", x, books) == "rvq_encode: Triton kernel"
    assert backend.obstacle("rvq_encode", x, torch.zeros(2, 16, 513)) == (
        "codebook_dim is 513, above 512"
    )
    wide, half = torch.zeros(0, 2, 8193), torch.zeros(1, 8, dtype=torch.bfloat16)
    assert backend.obstacle("talker_sample", x, wide) == "a row has 8193 numbers, above 8192"
    assert backend.obstacle("talker_sample", half) == (
        "codes are drawn from float32, not torch.bfloat16"
    )
    monkeypatch.setattr(backend, "_installed", lambda name: False)
    assert backend.obstacle("rvq_encode", x) == "triton is not installed"


class Countable:
    """A tensor on a CUDA device that is not there, and how often anybody asks about that."""

    dtype = torch.float32
    shape = (3,)

    def __init__(self, index: int) -> None:
        self.device = torch.device("cuda", index)

    def numel(self) -> int:
        return 3


def test_a_device_is_asked_about_once_a_call(monkeypatch):
    """Not once for each of a generator's hundred tensors."""
    asked = []
    capability = lambda device: asked.append(device.index) or (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    monkeypatch.setattr(backend, "_installed", lambda name: True)
    assert backend.choose("generator", *[Countable(0)] * 108) == "triton"
    assert asked == [0]
    assert backend.choose("generator", *[Countable(0)] * 3, *[Countable(1)] * 3) == "triton"
    assert asked == [0, 0, 1]
    old = lambda device: (9, 0) if device.index == 0 else (7, 5)
    monkeypatch.setattr(torch.cuda, "get_device_capability", old)
    reason = backend.obstacle("generator", Countable(0), Countable(1))
    assert reason == "the GPU's compute capability is (7, 5), below (8, 0)"


@pytest.mark.parametrize(
    ("triton", "numpy", "works"),
    [
        ("3.6.0", "2.3.5", True),
        ("3.6.0", "2.4.0", False),
        ("3.6.0", "2.5.5", False),
        ("3.7.1", "2.5.0", True),
        ("3.10.0", "2.10.1", True),
    ],
)
def test_an_interpreter_that_cannot_run_says_why(monkeypatch, triton, numpy, works):
    x, versions = torch.zeros(1, 8), {"triton": triton, "numpy": numpy}
    monkeypatch.setattr(backend, "_version", versions.get)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.choose("code_sums", x) == "torch"  # nobody asks for the interpreter
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    if works:
        assert backend.choose("code_sums", x) == "triton"
        return
    reason = f"the interpreter of Triton {triton} does not work with numpy {numpy}"
    with pytest.raises(BackendUnavailableError, match=f"{reason}.* below 2.4, or Triton 3.7"):
        backend.choose("code_sums", x)
    assert reason in backend.explain("code_sums", x)
    assert reason in backend.doctor()["operations"]["generator"]["cpu"]


def test_the_fallback_is_logged_once(caplog):
    backend._logged.clear()
    caplog.set_level("INFO", logger="muomni_fast")
    for _ in range(3):
        muomni_fast.RVQ().encode(torch.randn(2, 128))
    assert caplog.text.count("rvq_encode runs its torch path") == 1


# On a GPU


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that kernels run on, and nothing said yet."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(backend, "_installed", lambda name: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(kernel_cache, "hazard", lambda folder: None)
    backend._logged.clear()
    backend._before_the_first_launch.cache_clear()
    yield
    backend._before_the_first_launch.cache_clear()


def choose_everything() -> set[str]:
    """The backends of three calls of every operation."""
    return {backend.choose(op, Countable(0)) for op in backend.OPERATIONS * 3}


def test_nothing_is_said_where_all_is_well(hopper, caplog):
    assert choose_everything() == {"triton"}
    assert not caplog.records


def test_a_gpu_too_old_falls_back_with_one_warning(hopper, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    reason = "the GPU's compute capability is (7, 5), below (8, 0)"
    for _ in range(3):
        assert backend.choose("mrf", Countable(0)) == "torch"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == f"mrf runs its torch path: {reason}"
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    with pytest.raises(BackendUnavailableError) as error:
        backend.choose("mrf", Countable(0))
    assert str(error.value) == f"MUOMNI_FAST_BACKEND=triton, but {reason}"


def test_float64_is_not_for_kernels(hopper):
    value = Countable(0)
    value.dtype = torch.float64
    for op in backend.OPERATIONS:
        assert backend.choose(op, Countable(0), value) == "torch"
        assert backend.explain(op, value).endswith("because kernels do not take float64")


@pytest.mark.parametrize("choice", ["auto", "triton"])
def test_interpreting_on_a_gpu_is_warned_of_once(hopper, monkeypatch, caplog, choice):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", choice)
    monkeypatch.setattr(backend, "interpreter_obstacle", lambda: None)
    assert choose_everything() == {"triton"}
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "TRITON_INTERPRET=1" in record.getMessage()
    assert "slow, and not exact" in record.getMessage()


def test_interpreting_on_a_cpu_is_what_was_asked_for(hopper, monkeypatch, caplog):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    monkeypatch.setattr(backend, "interpreter_obstacle", lambda: None)
    assert backend.choose("mrf", torch.zeros(1)) == "triton"
    assert not caplog.records


def test_a_cache_that_others_write_to_is_warned_of_once(hopper, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(kernel_cache, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(kernel_cache, "hazard", lambda folder: f"others can write to {folder}")
    backend.choose("mrf", torch.zeros(1))  # nothing is loaded
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    assert choose_everything() == {"triton"}
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    start = f"compiled kernels are loaded from {tmp_path}, where others could plant code: "
    assert record.getMessage().startswith(f"{start}others can write to {tmp_path}. ")


# What the doctor says


def test_the_doctor_reports_versions_and_the_cache(monkeypatch, tmp_path):
    report = muomni_fast.doctor()
    for name, distribution in (
        ("muomni_fast", "muomni-fast"),
        ("torch", "torch"),
        ("triton", "triton"),
    ):
        assert report[name] == importlib.metadata.version(distribution), name
    assert report["python"] == platform.python_version()
    assert report["cuda"] == torch.version.cuda
    folder = kernel_cache.cache_folder()
    cache = {"folder": str(folder), "hazard": kernel_cache.hazard(folder)}
    assert report["kernel_cache"] == cache and os.path.isabs(folder)
