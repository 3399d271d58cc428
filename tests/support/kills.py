"""Trainings that are killed, and disks that are full or read-only: `make kills`.

A tiny training is killed at random moments and resumed, until it has been killed as often as asked
for; whatever it leaves must then be what an unbroken run leaves, to the bit, and no file more. Then
the disk fails it in ten ways: each must be a CheckpointError that names a path, with the checkpoint
before intact and no temporary file left, and the run must go on once the disk is well again.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # of the tests, where this is run as a script

from muomni_fast.reference.training.run_folder import RunFolder  # noqa: E402
from support.disk_faults import disk_faults  # noqa: E402
from support.tiny_runs import (  # noqa: E402
    Training,
    counted,
    dies_at,
    make_tiny,
    require_same,
    require_sound,
    train_here,
)


def killed_and_resumed(
    whole: Path, kills: int, calls: int, seconds: float, draw: random.Random
) -> str:
    """Kill trainings, by turns at a random time and at a random operation on files.

    Args:
        whole: what an unbroken run left.
        kills: how many.
        calls: how often an unbroken run changes a folder.
        seconds: how long it takes.
        draw: decides the moments.
    """
    done, runs, unbegun, steps = 0, 1, 0, []
    folder = Path(f"killed-{runs}/run")
    while done < kills:
        if done % 2:
            training = Training(folder, dies_at(draw.randint(1, calls)))
        else:
            training = Training(folder)
            training.process.join(draw.uniform(0, seconds))
            training.process.kill()
        if training.end() == -signal.SIGKILL:
            done += 1
            steps.append(str(require_sound(RunFolder(folder))))
            unbegun += not RunFolder(folder).config.exists()
        else:
            training.must_succeed()
            require_same(whole, folder)
            runs += 1
            folder = Path(f"killed-{runs}/run")
    Training(folder).must_succeed()
    require_same(whole, folder)
    return (
        f"{done} kills, with checkpoints of steps {', '.join(steps)} ({unbegun} before a run had "
        f"begun); {runs} runs, each equal to the unbroken one in all of its "
        f"{len(list(whole.rglob('*')))} files and folders"
    )


def used_by_one(whole: Path) -> str:
    """While a run trains nobody else may train there; once it is killed, anybody."""
    folder = Path("in-use/run")
    first = Training(folder)
    while not RunFolder(folder).config.exists():
        assert first.process.is_alive()
        time.sleep(0.001)
    os.kill(first.process.pid or 0, signal.SIGSTOP)
    try:
        message = Training(folder).must_fail()
    finally:
        first.process.kill()
    assert f"{folder}: in use" in message, message
    assert first.end() == -signal.SIGKILL
    Training(folder).must_succeed()
    require_same(whole, folder)
    return "a run that trains could not be resumed beside; once killed it could"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--faults", type=int, default=10, help="how many of the ten (default: all)")
    parser.add_argument("--seed", type=int, help="of the moments (default: a new one)")
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    began, draw = time.perf_counter(), random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        os.chdir(place)
        make_tiny()
        whole = Path("whole/run")
        train_here(whole)
        start = time.perf_counter()
        calls = counted(Path("counted/run"))
        seconds = time.perf_counter() - start
        require_same(whole, Path("counted/run"))
        print(killed_and_resumed(whole, options.kills, calls, seconds, draw), flush=True)
        print(used_by_one(whole), flush=True)
        for line in disk_faults(whole, options.faults, calls, draw):
            print(line, flush=True)
        os.chdir("/")
    print(f"nothing lost, nothing left behind, in {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
