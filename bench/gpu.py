"""Everything to learn about the kernels from a machine with an NVIDIA GPU, in one command.

    MUOMNI_BENCH_OUT=results python bench/gpu.py [--steps NAME ...] [--done gpu.json] [--budget S]
    python bench/gpu.py --dry-run          # on a CPU, in Triton's interpreter, at tiny sizes

Steps run one after another, the most telling first, each in a process of its own with a time limit,
so that a crash or a hang costs one step. Results gather in MUOMNI_BENCH_OUT/gpu.json after every
step, output in gpu.log. `--done` takes the file of an earlier call: what succeeded there is kept
and not run again. Needs torch, triton, numpy and pytest.
"""

import argparse
import dataclasses
import datetime
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
VARIABLE = "MUOMNI_BENCH_OUT"


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing to find out.

    Attributes:
        name: of the step, `kernel: what`.
        limit: seconds after which it is stopped.
        run: takes whether this is a dry run; returns what goes to the results.
    """

    name: str
    limit: int
    run: Callable[[bool], dict[str, Any]]


def environment(dry_run: bool) -> dict[str, Any]:
    """GPU, versions, date, and the memory bandwidth reached by a copy."""
    import torch
    import triton

    about = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }
    if not dry_run:
        from timing import milliseconds

        source = torch.randn(1 << 28, device="cuda")  # 1 GiB
        target = torch.empty_like(source)
        moved = 2 * source.numel() * source.element_size()
        about["copy_TB_s"] = moved / milliseconds(lambda: target.copy_(source)) / 1e9
        about["gpu"] = torch.cuda.get_device_name()
        about["capability"] = torch.cuda.get_device_capability()
    return about


def marked_tests(dry_run: bool) -> dict[str, Any]:
    """The tests marked `gpu`."""
    # -P: the repository's own folder would shadow other packages' modules.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-m", "gpu", "tests"]
    command += ["-p", "no:cacheprovider", *(["--collect-only"] if dry_run else [])]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True)
    print(done.stdout[-6000:], done.stderr[-2000:])
    assert done.returncode == 0, done.returncode
    return {"summary": done.stdout.strip().splitlines()[-1]}


def all_steps() -> list[Step]:
    """Of every kernel; a new kernel's module adds its own here."""
    import gpu_rvq
    import gpu_vocoder

    pairs = itertools.zip_longest(gpu_rvq.STEPS, gpu_vocoder.STEPS)
    steps = [step for pair in pairs for step in pair if step is not None]
    return [
        Step("environment", 120, environment),
        *steps,
        Step("tests marked gpu", 400, marked_tests),
    ]


def run_one(name: str, dry_run: bool, path: Path) -> None:
    """What the process of one step does: run it and write what it returns."""
    (step,) = [step for step in all_steps() if step.name == name]
    path.write_text(json.dumps(step.run(dry_run)))


def run_all(steps: list[Step], dry_run: bool, out: Path, done: dict[str, Any], end: float) -> bool:
    """Run what is not done, until the budget ends; true if all steps succeeded."""
    results, log = dict(done), open(out / "gpu.log", "a")  # noqa: SIM115
    part = out / "step.json"
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    if dry_run:
        env |= {"TRITON_INTERPRET": "1", "MUOMNI_FAST_BACKEND": "triton"}
    for step in steps:
        left = end - time.monotonic()
        if results.get(step.name, {}).get("ok") or left < 5:
            continue
        print(f"{step.name} ...", flush=True)
        command = [sys.executable, __file__, "--one", step.name, "--part", str(part)]
        command += ["--dry-run"] if dry_run else []
        start, error = time.monotonic(), None
        process = subprocess.Popen(
            command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(min(step.limit, left))
            error = None if code == 0 else f"exit {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
            process.wait()
            error = "out of time"
        found = json.loads(part.read_text()) if part.exists() else {}
        part.unlink(missing_ok=True)
        results[step.name] = {
            "ok": error is None,
            "error": error,
            "seconds": round(time.monotonic() - start, 1),
            "result": found,
        }
        (out / "gpu.json").write_text(json.dumps(results, indent=1))
        print(f"  {error or 'ok'} after {results[step.name]['seconds']} s: {found}", flush=True)
    log.close()
    return all(results.get(step.name, {}).get("ok") for step in steps)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, tiny, interpreted")
    parser.add_argument("--steps", nargs="+", help="only these, in this order")
    parser.add_argument("--done", type=Path, help="gpu.json of an earlier call")
    parser.add_argument("--budget", type=float, default=3600, help="seconds for everything")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        run_one(args.one, args.dry_run, args.part)
        return 0
    if VARIABLE not in os.environ:
        parser.error(f"set {VARIABLE} to the folder for the results")
    out = Path(os.environ[VARIABLE])
    out.mkdir(parents=True, exist_ok=True)
    steps = {step.name: step for step in all_steps()}
    unknown = set(args.steps or []) - set(steps)
    if unknown:
        parser.error(f"--steps: expected some of {', '.join(steps)}, got {', '.join(unknown)}")
    chosen = [steps[name] for name in args.steps or steps]
    done = json.loads(args.done.read_text()) if args.done else {}
    end = time.monotonic() + args.budget
    return 0 if run_all(chosen, args.dry_run, out, done, end) else 1


if __name__ == "__main__":
    raise SystemExit(main())
