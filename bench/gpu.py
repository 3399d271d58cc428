"""Everything to learn about the kernels from a machine with an NVIDIA GPU, in one command.

    MUOMNI_BENCH_OUT=results python bench/gpu.py [--done figures.jsonl] [--steps NAME ...]
    MUOMNI_BENCH_OUT=build/out python bench/gpu.py --rehearse    # no GPU: over a stub driver

Steps run one after another, the most telling first, each in a process of its own with a time limit,
so that a crash or a hang costs one step. Every figure is in MUOMNI_BENCH_OUT/figures.jsonl as soon
as it is measured, output in gpu.log. The budget of one call is under ten minutes; `--done` takes
the file of an earlier call and goes on from there. `bench/RESULTS.md` says how a run is read and
what of it is committed. Needs torch, triton, numpy, pytest and hypothesis.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import rehearsal
import triton
from gpu_step import Figures, Step, append, read_lines

FILE = Path(__file__).resolve()
VARIABLE = "MUOMNI_BENCH_OUT"
PATHS = "child_paths"  # of the files of a kernel, in Triton's cache
CHECKS, CHECKS_FAILED = "checks failed; see gpu.log", 3  # how a step ended, its exit status
BUDGET = 560  # seconds: a call of ten minutes, less what starting takes


def all_steps() -> list[Step]:
    """In the order in which they run: what everything rests on, then what is asked first."""
    import gpu_machine
    import gpu_models
    import gpu_rvq
    import gpu_tuning
    import gpu_vocoder

    machine, rvq, vocoder = gpu_machine.STEPS, gpu_rvq.STEPS, gpu_vocoder.STEPS
    models = gpu_models.STEPS
    return [
        machine["environment"],
        machine["compilation"],
        rvq["calibration"],
        rvq["parity"],
        vocoder["parity"],
        *rvq["main times"],
        *vocoder["main times"],
        rvq["repetition"],
        vocoder["repetition"],
        vocoder["gradients"],
        machine["tests"],
        *gpu_tuning.STEPS,
        vocoder["training"],
        vocoder["training in a graph"],
        models["talker"],
        *vocoder["compiled times"],
        *rvq["compiled times"],
        rvq["memory checks"],
        vocoder["memory checks"],
        rvq["training"],
        models["families"],
        *vocoder["other times"],
        *rvq["other times"],
        rvq["peers"],
    ]


def known_figures(lines: list[dict[str, Any]], step: str) -> dict[str, Any]:
    """What earlier calls measured of a step: all of it, unless it broke off with an error."""
    found: dict[str, Any] = {}
    for line in lines:
        if line["step"] == step:
            if "figure" in line:
                found[line["figure"]] = line["value"]
            elif line["error"] not in (None, "out of time", CHECKS):
                found = {}
    return found


def run_one(name: str, path: Path) -> None:
    """Run a step in this process."""
    if rehearsal.MODE in os.environ:
        rehearsal.install()
    (step,) = [step for step in all_steps() if step.name == name]
    lines = read_lines(path) if path.exists() else []
    figures = Figures(name, path, known_figures(lines, name))
    step.run(figures)
    figures.finish()


def run_all(names: list[tuple[str, int]], out: Path, budget: float, env: dict[str, str]) -> bool:
    """Run what is not done, (name, limit) each, until the budget ends; true if all succeeded."""
    path, end = out / "figures.jsonl", time.monotonic() + budget
    ended = {line["step"]: line["error"] for line in read_lines(path) if "figure" not in line}
    fine = True
    with (out / "gpu.log").open("a") as log:
        for name, limit in names:
            left = end - time.monotonic()
            # This machine may be a fresh one, which has compiled nothing.
            if name in ended and ended[name] in (None, CHECKS) and name != "compilation":
                fine = fine and ended[name] is None
                continue
            if left < 5:
                print(f"{name}: no time left", flush=True)
                fine = False
                continue
            print(f"{name} ...", flush=True)
            error, seconds = _run_process(name, path, min(limit, left), env, log)
            append(path, {"step": name, "error": error, "seconds": round(seconds, 1)})
            print(f"  {error or 'ok'} after {seconds:.1f} s", flush=True)
            fine = fine and error is None
    return fine


def _run_process(
    name: str, path: Path, limit: float, env: dict[str, str], log: Any
) -> tuple[str | None, float]:
    command = [sys.executable, str(FILE), "--one", name, "--path", str(path)]
    start = time.monotonic()
    process = subprocess.Popen(
        command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        code = process.wait(limit)
        error = None if code == 0 else f"exit {code}; see gpu.log"
        error = CHECKS if code == CHECKS_FAILED else error
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # and what it started
        process.wait()
        error = "out of time"
    return error, time.monotonic() - start


def pack(archive: Path) -> None:
    """What Triton's cache holds, less what only people read."""
    folder = Path(triton.knobs.cache.dir)
    with tarfile.open(archive, "w:xz", preset=1) as file:
        for path in sorted(folder.glob("*/*")):
            if path.suffix in (".cubin", ".json", ".so"):
                file.add(path, path.relative_to(folder))


def unpack(archive: Path) -> None:
    """Put compiled kernels where Triton looks for them; their lists of files say where that is."""
    folder = Path(triton.knobs.cache.dir)
    folder.mkdir(0o700, parents=True, exist_ok=True)  # its files are run: they are nobody else's
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
        members = [folder / name for name in file.getnames()]
    for path in members:
        if path.name.startswith("__grp__"):
            here = {name: str(path.parent / name) for name in json.loads(path.read_text())[PATHS]}
            path.write_text(json.dumps({PATHS: here}))


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", nargs="+", help="only these, in this order")
    parser.add_argument("--done", type=Path, help="figures.jsonl of an earlier call")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for everything")
    parser.add_argument("--cache", type=Path, help="compiled kernels, packed by --pack elsewhere")
    parser.add_argument(
        "--rehearse",
        nargs="?",
        const="launches",
        choices=("launches", "names"),
        help="without a GPU: over a stub driver, or, quicker, without compiling either",
    )
    parser.add_argument("--pack", type=Path, help="afterwards, pack what was compiled")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        try:
            run_one(args.one, args.path)
        except AssertionError as error:
            print(f"checks failed: {error}")
            return CHECKS_FAILED
        return 0
    if VARIABLE not in os.environ:
        parser.error(f"set {VARIABLE} to the folder for the results")
    if args.rehearse:
        os.environ[rehearsal.MODE] = args.rehearse
    if args.rehearse == "names":
        rehearsal.install()  # before the steps take what it replaces
    steps = {step.name: step for step in all_steps()}
    unknown = set(args.steps or []) - set(steps)
    if unknown:
        parser.error(f"--steps: expected some of {', '.join(steps)}, got {', '.join(unknown)}")
    patience = 20 if args.rehearse else 1  # few cores, and all the compiling
    chosen = [(name, steps[name].limit * patience) for name in args.steps or steps]
    out = Path(os.environ[VARIABLE])
    out.mkdir(parents=True, exist_ok=True)
    path = out / "figures.jsonl"
    before = args.done.read_text() if args.done else ""
    if path.exists() and path.read_text() not in ("", before):
        parser.error(f"{path} has figures already: go on with --done, or name another folder")
    path.write_text(before)
    if args.cache:
        unpack(args.cache)
    if args.rehearse == "names":  # quick: in one process, to the first error
        for name, _ in chosen:
            run_one(name, path)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"PYTHONUNBUFFERED": "1"}
        if args.rehearse:
            env |= rehearsal.build_stub(Path(folder))
        fine = run_all(chosen, out, args.budget, env)
    if args.pack:
        pack(args.pack)
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
