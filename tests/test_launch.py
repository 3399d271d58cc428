"""What launchers start without asking Triton is what Triton would have started."""

import os
import subprocess
import sys

import pytest
from support.environment import ROOT

pytest.importorskip("triton")
pytestmark = pytest.mark.long

# Launches that are not interpreted need a process that never interprets.
ENV = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    folder = ROOT / "tests" / "support"
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=ENV, cwd=folder
    )


def test_known_launches_are_those_that_triton_would_make():
    """Of a kernel that can be told apart by everything, and of all that is compiled ahead of time
    (bench/aot_cases.py)."""
    done = run("launches.py")
    assert done.returncode == 0, done.stderr
    toys, cases = (line.split() for line in done.stdout.splitlines())
    assert int(toys[1]) > 20_000 and int(cases[1]) > 1000, done.stdout


@pytest.mark.parametrize("fault", ["Tensor 0", "Tensor 1", "int 0", "int 1", "int 2"])
def test_whatever_a_kernel_is_compiled_for_counts(fault):
    """Dtypes and alignment of tensors; size, divisibility and being one of integers."""
    done = run("launches.py", "forget", *fault.split())
    assert "AssertionError" in done.stderr, done.stdout + done.stderr
