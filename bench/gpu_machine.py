"""Steps of `gpu.py` that are about no kernel in particular: the machine, compilation, the tests."""

import concurrent.futures
import datetime
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import rehearsal
import torch
import triton
from gpu_step import Figures, Step
from timing import milliseconds

FOLDER = Path(__file__).resolve().parent


def environment(figures: Figures) -> None:
    """GPU, versions, date, and the memory bandwidth reached by a copy."""
    about = {
        "gpu": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "capability": list(torch.cuda.get_device_capability()),
    }
    for name, value in about.items():
        figures.put(name, value)

    def copied() -> float:
        source = torch.randn(1 << 28, device="cuda")  # 1 GiB
        target = torch.empty_like(source)
        moved = 2 * source.numel() * source.element_size()
        return moved / milliseconds(lambda: target.copy_(source)) / 1e9

    figures.take("copy, TB/s", copied)


def compilation(figures: Figures) -> None:
    """Compile whatever the steps launch and Triton's cache lacks, on all cores."""
    import gpu

    ahead = ("environment", "compilation")
    steps = [step.name for step in gpu.all_steps() if step.name not in ahead]
    compile_ahead(figures, steps, os.cpu_count() or 1)


def compile_ahead(figures: Figures, steps: list[str], processes: int) -> None:
    """Find out what steps would compile, by rehearsing them, and compile that.

    Raises:
        RuntimeError: a step cannot be rehearsed, or a kernel does not compile.
    """
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder) / "names"

        def rehearse(step: str) -> None:
            """In a process and a folder of its own: no step sees what another left."""
            env = os.environ | {
                "CUDA_VISIBLE_DEVICES": "",
                "OMP_NUM_THREADS": "1",
                "MUOMNI_BENCH_OUT": tempfile.mkdtemp(dir=folder),
                rehearsal.NAMES: str(names),
            }
            command = [sys.executable, str(FOLDER / "gpu.py"), "--rehearse", "names"]
            done = subprocess.run(
                [*command, "--steps", step], env=env, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(f"{step} cannot be rehearsed: {done.stderr[-2000:]}")

        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(processes) as threads:
            list(threads.map(rehearse, steps))
        figures.put("seconds to name kernels", round(time.monotonic() - start, 1))
        lines = sorted(set(names.read_text().splitlines()))
    start = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, spawn) as pool:
        done = [pool.submit(rehearsal.compile_named, line) for line in lines]
        errors = [str(future.exception()) for future in done if future.exception()]
    figures.put("kernels", len(lines))
    figures.put("seconds to compile", round(time.monotonic() - start, 1))
    if errors:
        raise RuntimeError(f"{len(errors)} kernels do not compile: {errors[:3]}")


class Outcomes:
    """A pytest plugin: the outcome of each test is a figure; what has passed does not run again."""

    def __init__(self, figures: Figures) -> None:
        self.figures = figures
        self.before = dict(figures.known)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self.before.get(item.nodeid) != "passed"]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Any:
        """In a rehearsal no kernel computes, so what fails only by its result has not failed."""
        wrong_result = AssertionError, pytest.fail.Exception
        if not self.figures.asserts and call.excinfo and call.excinfo.errisinstance(wrong_result):
            call.excinfo = None
        return (yield)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or not report.passed:
            self.figures.put(report.nodeid, report.outcome)
            self.figures.check(not report.failed, report.nodeid)


def tests(figures: Figures) -> None:
    """The tests marked `gpu`."""
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "--rootdir", str(FOLDER.parent)]
    config = ["-c", str(FOLDER.parent / "pyproject.toml"), str(FOLDER.parent / "tests")]
    outcomes = Outcomes(figures)
    code = pytest.main([*options, *config], plugins=[outcomes])
    nothing_left = (
        code == pytest.ExitCode.NO_TESTS_COLLECTED and "passed" in outcomes.before.values()
    )
    figures.check(code == 0 or nothing_left, f"pytest ended with {code!r}")


STEPS = {
    "environment": Step("environment", 60, environment),
    "compilation": Step("compilation", 240, compilation),
    "tests": Step("tests marked gpu", 300, tests),
}
