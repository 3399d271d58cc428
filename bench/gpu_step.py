"""What the steps of `gpu.py` are made of: figures on disk as they are measured, and ways to run."""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

REPETITIONS = 250  # of what must give the same bits every time
# What a card moves and multiplies at best, for floors: bytes/s of a copy, bfloat16 FLOP/s (TF32
# takes twice as long). The H200's were measured; the H100's bandwidth is scaled by its memory's.
PEAKS = {"H100": (2.9e12, 790e12), "H200": (4.3e12, 790e12)}
CHECKS = ("memcheck", "initcheck", "synccheck", "racecheck")  # of compute-sanitizer


class Figures:
    """What one step finds out, each figure in a file the moment it is known.

    A line of the file is {"step", "figure", "value"}; a stop at any moment loses the figure that
    was being measured. What an earlier call measured is not measured again.
    """

    asserts = True  # a rehearsal records only

    def __init__(self, step: str, path: Path, known: dict[str, Any]) -> None:
        self.step, self.path, self.known = step, path, dict(known)
        self.failed: list[str] = []

    def take(self, name: str, measure: Callable[[], Any]) -> Any:
        """Measure, unless it is known; write it down and return it."""
        if name not in self.known:
            self.put(name, measure())
        return self.known[name]

    def put(self, name: str, value: Any) -> None:
        """Write a figure down."""
        self.known[name] = value
        append(self.path, {"step": self.step, "figure": name, "value": value})
        print(f"{name}: {value}", flush=True)

    def check(self, fine: bool, what: str) -> None:
        """Note what must not be; the step goes on, and `finish` fails."""
        if not fine:
            self.failed.append(what)
            print(f"NOT AS IT MUST BE: {what}", flush=True)

    def finish(self) -> None:
        """Fail if a check did."""
        if self.failed and self.asserts:
            raise AssertionError("; ".join(self.failed))


def append(path: Path, line: dict[str, Any]) -> None:
    """One more line of a file of JSON lines, on disk when this returns."""
    with path.open("a+b") as file:
        whole = file.tell() == 0 or (file.seek(-1, os.SEEK_END), file.read(1))[1] == b"\n"
        file.write((b"" if whole else b"\n") + json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of such a file; one that a stop cut short is left out."""
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: left out {line[:80]!r}", file=sys.stderr)
    return found


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing to find out.

    Attributes:
        name: of the step, `kernel: what`.
        limit: seconds after which it is stopped.
        run: finds it out.
    """

    name: str
    limit: int
    run: Callable[[Figures], None]


def peaks() -> tuple[float, float]:
    """Bytes/s and bfloat16 FLOP/s of this card, the H100's where it is another."""
    name = torch.cuda.get_device_name()
    return next((found for card, found in PEAKS.items() if card in name), PEAKS["H100"])


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """The same as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def same_bits(figures: Figures, run: Callable[[], list[torch.Tensor]]) -> None:
    """Repeat what returns tensors; they must have the same bits every time."""
    first, differ = [t.detach().clone() for t in run()], 0
    for _ in range(REPETITIONS - 1):
        pairs = zip(first, run(), strict=True)
        differ += not all(torch.equal(a, b) for a, b in pairs)
    figures.put("runs", REPETITIONS)
    figures.put("runs that differ", differ)
    figures.check(differ == 0, f"{differ} of {REPETITIONS} runs differ")


def sanitized(figures: Figures, code: str) -> None:
    """What every check of compute-sanitizer says of a piece of Python, where it is installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        figures.put("skipped", "no compute-sanitizer here")
        return

    def run(check: str) -> dict[str, Any]:
        command = [tool, f"--tool={check}", "--error-exitcode=9", sys.executable, "-c", code]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        )
        return {"exit": done.returncode, "end": done.stdout[-300:]}

    for check in CHECKS:
        found = figures.take(check, functools.partial(run, check))
        figures.check(found["exit"] == 0, f"{check}: exit {found['exit']}")
