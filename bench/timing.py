"""How long a function takes on a device, and where that was."""

import datetime
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def made_folder(name: str) -> Path:
    """Of a command line: a folder for figures, made before an hour is spent on them."""
    path = Path(name)
    path.mkdir(parents=True, exist_ok=True)
    return path


def milliseconds(run: Callable[[], object], budget: float = 0.5, rounds: int = 200) -> float:
    """Median time of a call, by events on a GPU, after a warm-up, within `budget` seconds or so."""
    run()
    start = time.perf_counter()
    run()
    if not torch.cuda.is_available():
        once = time.perf_counter() - start
        times = [once]
        for _ in range(min(rounds, int(budget / max(once, 1e-6)))):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return 1e3 * statistics.median(times)
    torch.cuda.synchronize()
    once = time.perf_counter() - start
    pairs = []
    for _ in range(max(5, min(rounds, int(budget / max(once, 1e-6))))):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    least: float = 0.01,
    most: float = 2.0,
) -> dict[str, float]:
    """Seconds that a call of each takes on one thread: the median of rounds in which they take
    turns.

    Processor time, which other processes on the same cores do not lengthen. What takes less than
    `least` seconds is called several times a turn, what takes more than `most` has one turn only.
    """
    once, times = {}, {name: [] for name in runs}
    for name, run in runs.items():
        once[name] = processor_seconds(run)
        if once[name] <= most:  # the first call warms up
            once[name] = processor_seconds(run)
    for turn in range(rounds):
        for name, run in runs.items():
            if turn == 0 or once[name] <= most:
                calls = math.ceil(least / max(once[name], 1e-6))
                times[name].append(processor_seconds(run, calls))
    return {name: statistics.median(found) for name, found in times.items()}


def processor_seconds(run: Callable[[], object], calls: int = 1) -> float:
    """Processor time of a call, the mean of several in a row."""
    start = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - start) / calls


def about(threads: int, packages: Iterable[str] = ()) -> dict[str, Any]:
    """Date, machine and versions, for a file of results."""
    processor = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        processor = ", ".join([processor, *names[:1]])
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{processor}, {threads} {'thread' if threads == 1 else 'threads'}",
        "torch": torch.__version__,
        "versions": versions,
    }
