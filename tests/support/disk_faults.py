"""Disks that are full, and folders that are read-only, under a training."""

import contextlib
import dataclasses
import os
import random
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from muomni_fast.reference.atomic import is_leftover, remove_leftovers
from muomni_fast.reference.training.run_folder import RunFolder
from support.tiny_runs import (
    UNLIMITED,
    Fault,
    Training,
    dies_at,
    require_same,
    require_sound,
    watched,
)

NOBODY = 65534  # an ordinary user, where this process is root, whom no permission stops


def full_from(number: int, what: str) -> Fault:
    """No space is left from the n-th operation of a kind on."""
    count = 0

    def act(_: int, name: str) -> None:
        nonlocal count
        count += name == what
        if name == what and count >= number:
            raise OSError(28, "No space left on device")

    return watched(act)


def no_file_above(size: int) -> Fault:
    """The system itself refuses to write beyond a size."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, UNLIMITED))


@contextlib.contextmanager
def read_only(root: Path, folder: Path) -> Iterator[Fault]:
    """Take away the permission to write into a folder; whoever asks owns all of `root`."""
    if os.getuid() == 0:
        for path in (root, *root.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    folder.chmod(0o555)
    yield lambda: os.seteuid(NOBODY) if os.getuid() == 0 else None
    folder.chmod(0o755)


@dataclasses.dataclass(frozen=True)
class Case:
    """A fault, and the run it comes over.

    Attributes:
        name: for people.
        begun: "" is a new run, "half" one with a checkpoint, "whole" one without its report.
        fault: what fails.
        read_only: a folder that may not be written into, relative to the one around `run`.
    """

    name: str
    begun: str
    fault: Fault = lambda: None
    read_only: str | None = None


def cases(whole: Path, calls: int, draw: random.Random) -> list[Case]:
    """The ten."""
    config = RunFolder(whole).config.stat().st_size
    state = RunFolder(whole).state.stat().st_size
    return [
        Case("no file may hold anything", "", no_file_above(0)),
        Case("no file may be larger than a config", "", no_file_above(config)),
        Case("no file may be as large as a state", "half", no_file_above(state - 1)),
        Case("no file may be as large as a picture, report", "whole", no_file_above(100_000)),
        Case("full at the first write", "", full_from(1, "fsync")),
        Case("full at a random write", "half", full_from(draw.randint(1, calls // 6), "fsync")),
        Case("full at a random rename", "half", full_from(draw.randint(1, calls // 6), "replace")),
        Case("read-only folder around", "", read_only="."),
        Case("read-only run", "half", read_only="run"),
        Case("read-only checkpoints", "half", read_only="run/checkpoints"),
    ]


def disk_faults(whole: Path, most: int, calls: int, draw: random.Random) -> Iterator[str]:
    """Let disks fail trainings, and let these go on afterwards.

    Args:
        whole: what an unbroken run left.
        most: at most so many cases, drawn at random.
        calls: how often an unbroken run changes a folder.
        draw: decides.

    Yields:
        what each said.
    """
    begun = {"half": Path("half/run"), "whole": whole}
    number = calls // 3
    while not RunFolder(begun["half"]).state.exists():
        assert Training(begun["half"], dies_at(number)).end() == -signal.SIGKILL
        number += 1
    remove_leftovers(begun["half"])
    chosen = cases(whole, calls, draw)
    for number in sorted(draw.sample(range(len(chosen)), most)):
        case, folder = chosen[number], Path(f"fault-{number + 1}/run")
        if case.begun:
            shutil.copytree(begun[case.begun], folder)
            (folder / "report.txt").unlink(missing_ok=True)
        else:
            folder.parent.mkdir()
        step = require_sound(RunFolder(folder))
        with contextlib.ExitStack() as stack:
            fault = case.fault
            if case.read_only:
                closed = folder.parent / case.read_only
                fault = stack.enter_context(read_only(folder.parent, closed))
            message = Training(folder, fault).must_fail()
        assert str(folder) in message, f"{case.name}: names no path: {message}"
        left = [path for path in folder.parent.rglob("*") if is_leftover(path)]
        assert not left, f"{case.name}: left behind: {left}"
        assert require_sound(RunFolder(folder)) >= step
        Training(folder).must_succeed()
        require_same(whole, folder)
        yield f"{number + 1}. {case.name}: {message}"
