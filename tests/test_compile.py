"""The kernels compile for GPUs that are not here, within their budgets (bench/aot.py)."""

import os
import subprocess
import sys

import pytest
from support.environment import ROOT

pytestmark = pytest.mark.long

# Compiling needs a process that never interprets.
ENV = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=ENV, cwd=ROOT / "bench"
    )


def test_main_configurations_compile_within_budget_for_both_architectures():
    done = run("aot.py", "--main")
    assert done.returncode == 0, done.stdout + done.stderr
    for arch in ("sm_80", "sm_90"):
        assert f"{arch}  encode default" in done.stdout


def test_a_configuration_that_spills_is_caught():
    plant = """
import aot
from muomni_fast.kernels.rvq import configs
configs.ENCODE["sm_90", 64] = configs.EncodeConfig(128, 128, 128, 32, "ieee", 4, 1)
print(aot.report(aot.CASES[0], 90, set())[0]["problems"])
"""
    done = run("-c", plant)
    assert "spills" in done.stdout, done.stdout + done.stderr
