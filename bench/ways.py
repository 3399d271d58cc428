"""How far a call goes through the library: `python bench/ways.py`.

Counts, for four trips, calls of the library's own Python code (comprehensions and resumed
generators count as Python counts them), the files it lies in, and how often one call is in another
file than the call before it. The goals are the project's own; the command fails where one is
missed.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch

import muomni_fast

ROOT = Path(muomni_fast.__file__).resolve().parent.parent
OURS = tuple(str(ROOT / name) + os.sep for name in ("muomni_fast", "kernels", "reference"))


@dataclasses.dataclass(frozen=True)
class Way:
    """Calls of the library's own functions, files entered, changes of file."""

    calls: int
    files: int
    changes: int


def way_of(trip: Callable[[], Any]) -> tuple[Way, list[str]]:
    """Count one trip, the second: the first looks things up once. Also every call in order."""
    seen: list[tuple[str, str]] = []

    kernel: list[FrameType] = []  # in which the interpreter is: its calls are the GPU's

    def note(frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if kernel and event == "return" and frame is kernel[0]:
            kernel.clear()
        elif not kernel and event == "call" and code.co_filename.startswith(OURS):
            seen.append((code.co_filename, code.co_name))
            if code.co_name.endswith("_kernel"):
                kernel.append(frame)

    with torch.no_grad():
        trip()
        sys.setprofile(note)
        try:
            trip()
        finally:
            sys.setprofile(None)
    files = [file for file, _ in seen]
    changes = sum(a != b for a, b in zip(files, files[1:], strict=False))
    steps = [f"{Path(file).relative_to(ROOT)}:{name}" for file, name in seen]
    return Way(len(seen), len(set(files)), changes), steps


def trips() -> dict[str, tuple[Callable[[], Any], str, Way]]:
    """Name -> what to call, MUOMNI_FAST_BACKEND, and the goal."""
    torch.manual_seed(0)  # frames whose nearest codes no second look is needed for
    rvq = muomni_fast.RVQ().eval()
    frames = torch.randn(2, 20, rvq.n_mels)
    plain, prepared = (muomni_fast.HiFiGANVocoder().eval() for _ in range(2))
    prepared.prepare()
    mel = torch.randn(1, plain.n_mels, 20)
    return {
        "RVQ.encode, CPU": (lambda: rvq.encode(frames), "torch", Way(28, 9, 10)),
        "RVQ.encode, kernels": (lambda: rvq.encode(frames), "triton", Way(35, 9, 11)),
        "HiFiGANVocoder.forward": (lambda: plain(mel), "torch", Way(120, 8, 30)),
        "HiFiGANVocoder.forward, prepared": (lambda: prepared(mel), "torch", Way(90, 7, 30)),
    }


def main() -> int:
    """Print every way beside its goal; `--calls` prints the calls themselves."""
    missed = 0
    print(f"{'trip':34} {'calls':>12} {'files':>10} {'changes':>12}")
    for name, (trip, backend, goal) in trips().items():
        os.environ["MUOMNI_FAST_BACKEND"] = backend
        way, steps = way_of(trip)
        found, wanted = dataclasses.astuple(way), dataclasses.astuple(goal)
        missed += any(a > b for a, b in zip(found, wanted, strict=True))
        cells = [f"{a} <= {b}" for a, b in zip(found, wanted, strict=True)]
        print(f"{name:34} {cells[0]:>12} {cells[1]:>10} {cells[2]:>12}")
        if "--calls" in sys.argv[1:]:
            print("\n".join(f"    {step}" for step in steps))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
