"""The kernels compile for GPUs that are not here, within their budgets (bench/aot.py)."""

import hashlib
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
        for case in ("encode default", "sample 2 x 128, 128 wide"):
            assert f"{arch}  {case}" in done.stdout


def test_a_configuration_that_spills_is_caught():
    plant = """
import aot
from muomni_fast.kernels.rvq import configs
configs.ENCODE["sm_80", 64] = configs.EncodeConfig(128, 128, 128, 32, 4, 1)
print(aot.report(aot.CASES[0], 80, set())[0]["problems"])
"""
    done = run("-c", plant)
    assert "spills" in done.stdout, done.stdout + done.stderr


def test_sums_that_lanes_round_differently_are_caught(tmp_path):
    """A square that is fused with a sum across lanes: branches on it could part a warp, which hangs
    or gives any code. The encoder's own sums, where a lane holds one of few dimensions."""
    (tmp_path / "planted.py").write_text(
        """
import triton
import triton.language as tl

@triton.jit
def sum_of_squares(x, axis: tl.constexpr):
    return tl.sum(x * x, axis)
"""
    )
    plant = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import aot, planted
from muomni_fast.kernels.rvq import nearest
nearest.sum_of_squares = planted.sum_of_squares
case = next(case for case in aot.CASES if case.name == "encode 1 x 2048 x 18")
for architecture in (80, 90):
    print(aot.report(case, architecture, set())[0]["problems"])
"""
    done = run("-c", plant)
    assert done.stdout.splitlines() == ["['lanes differ']"] * 2, done.stdout + done.stderr


TOGETHER = """
import aot, hashlib, sys
case = next(case for case in aot.CASES if case.name == "decode default")
print("ready", flush=True)
sys.stdin.readline()
with aot.compiling_for(80) as kernels:
    case.launch()
for name, kernel in kernels.items():
    print(name, hashlib.sha256(kernel.asm["cubin"]).hexdigest())
"""


def test_processes_that_compile_the_same_at_once_share_a_cache(tmp_path):
    """Each gets the whole kernel, and one is left, with nothing unfinished beside it."""
    cache = tmp_path / "cache"
    cache.mkdir(0o700)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENV | {"TRITON_CACHE_DIR": str(cache)},
            cwd=ROOT / "bench",
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    assert not [*cache.iterdir()]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    (names,) = {output for output, _ in said}
    assert names.startswith("_rvq_decode_kernel")
    (binary,) = cache.rglob("*.cubin")
    assert hashlib.sha256(binary.read_bytes()).hexdigest() in names
    assert not [*cache.rglob("tmp.*")]
