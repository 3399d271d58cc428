"""Tiny trainings, each in a process of its own that can be killed or whose disk can fail.

Each is a fork of this process, which has imported all it needs: it starts at once, and needs no
file that an ordinary user may not read.
"""

import dataclasses
import json
import multiprocessing
import os
import resource
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile
import torch

from muomni_fast.reference import train
from muomni_fast.reference.atomic import write_atomically
from muomni_fast.reference.checkpoint import load_model, load_training_state
from muomni_fast.reference.errors import CheckpointError, DataError
from muomni_fast.reference.training import presets, report
from muomni_fast.reference.training.run import run
from muomni_fast.reference.training.run_folder import RunFolder
from muomni_fast.reference.training.rvq_stage import RVQStage
from support.training import assert_same, rows

CALLS = ("mkdir", "fsync", "replace", "unlink")  # what changes a folder, and is watched
FORK = multiprocessing.get_context("fork")
Fault = Callable[[], Any]  # what is done in a training's process before it trains
SPEED = "steps_per_second"
UNLIMITED = resource.RLIM_INFINITY


OPTIONS = ["--preset", "smoke", "--stage", "rvq", "--amp", "fp16", "--data", "data"]


def make_tiny() -> None:
    """Make the smoke preset tiny, with all the state there is to lose, and its data, `data/`."""
    torch.set_num_threads(1)
    presets.SHARED["smoke"] |= {"checkpoint_every": 2, "validate_every": 5}
    recipe = RVQStage.recipes["smoke"]
    RVQStage.recipes["smoke"] = dataclasses.replace(recipe, steps=15, ema_decay=0.9)
    # Drawing takes longer than all the rest.
    report.plot_losses = lambda path, metrics: write_atomically(path, bytes(50_000))
    report.plot_mels = lambda path, mels, config: write_atomically(path, bytes(200_000))
    os.mkdir("data")
    for i in range(6):
        noise = 0.1 * np.random.default_rng(i).standard_normal(6000)
        soundfile.write(f"data/{i}.wav", noise, 16000)


def train_here(folder: Path) -> None:
    """The unbroken run, in this process: it imports all that the others need."""
    run(train.parse_arguments(["--device", "cpu", *OPTIONS, "--out", str(folder)]))


def child(arguments: list[str], fault: Fault, said: Path) -> None:
    """Train; leaves what went wrong in `said`, and ends with status 1."""
    with open(said, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    fault()
    try:
        run(train.parse_arguments(arguments))
    except (CheckpointError, DataError) as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (UNLIMITED, UNLIMITED))
        said.with_suffix(".error").write_text(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from error


class Training:
    """A training in a process of its own."""

    def __init__(self, folder: Path, fault: Fault = lambda: None) -> None:
        self.folder = RunFolder(folder)
        begun = self.folder.config.exists()
        where = ["--resume", str(folder)] if begun else [*OPTIONS, "--out", str(folder)]
        folder.parent.mkdir(exist_ok=True)
        self.said = Path(tempfile.mkdtemp(dir=".")) / "said.txt"
        self.said.parent.chmod(0o777)
        arguments = ["--device", "cpu", *where]
        self.process = FORK.Process(target=child, args=(arguments, fault, self.said.resolve()))
        self.process.start()

    def end(self) -> int:
        """Wait for it; returns its status, negative where it was killed."""
        self.process.join(120)
        assert self.process.exitcode is not None, "hangs"
        return self.process.exitcode

    def must_succeed(self) -> None:
        assert self.end() == 0, self.said.read_text()

    def must_fail(self) -> str:
        """What it says."""
        assert self.end() == 1, f"status {self.process.exitcode}"
        error = self.said.with_suffix(".error")
        assert error.exists(), f"no error with a name: {self.said.read_text()}"
        return error.read_text()


# What a run leaves


def require_sound(folder: RunFolder) -> int:
    """Check that the checkpoints there are can be read; returns the step they are at."""
    if folder.model("rvq").exists():
        load_model(folder.model("rvq"), "rvq")
    return load_training_state(folder.state)["step"] if folder.state.exists() else 0


def without_speed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_speed(inner) for name, inner in value.items() if name != SPEED}
    return value


def without_speed_and_place(report: str) -> list[str]:
    return [x for x in report.splitlines() if "; skipped:" not in x and "run folder:" not in x]


def require_same(whole: Path, again: Path) -> None:
    """Check that two runs left the same files, and the same in them but for what time it took."""
    names, other = ({str(p.relative_to(f)) for p in f.rglob("*")} for f in (whole, again))
    assert names == other, f"{again}: {names ^ other}"
    states = (load_training_state(RunFolder(f).state) for f in (whole, again))
    assert_same(*states)
    for name in sorted(names):
        paths = whole / name, again / name
        if name == "results.json":
            figures = [without_speed(json.loads(path.read_text())) for path in paths]
        elif name.startswith("metrics"):
            figures = [[without_speed(row) for row in rows(f, "rvq")] for f in (whole, again)]
        elif name == "report.txt":
            figures = [without_speed_and_place(path.read_text()) for path in paths]
        elif name != "checkpoints/state.pt" and paths[0].is_file():
            figures = [path.read_bytes() for path in paths]
        else:
            continue
        assert figures[0] == figures[1], f"{paths[1]} is not as in the unbroken run"


# Watching


def watched(act: Callable[[int, str], None]) -> Fault:
    """Calls `act` before each operation that changes a folder, with its number and name."""

    def watch() -> None:
        count = 0

        def watching(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                act(count, name)
                return real(*args, **options)

            return call

        for name in CALLS:
            mock.patch.object(os, name, watching(name, getattr(os, name))).start()

    return watch


def dies_at(number: int) -> Fault:
    def act(count: int, name: str) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return watched(act)


def counted(folder: Path) -> int:
    """Train, and count how often that changes a folder."""
    count = Path("count.txt").resolve()
    Training(folder, watched(lambda n, _: count.write_text(str(n)))).must_succeed()
    return int(count.read_text())
