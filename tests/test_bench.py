"""The benchmarks' own commands work: on a CPU, at tiny sizes, before a GPU or an hour is spent."""

import json
import os
import subprocess
import sys

from conftest import ROOT

ENV = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=ENV | env, cwd=ROOT
    )


def test_dry_run_of_everything_for_a_gpu(tmp_path):
    done = run("bench/gpu.py", "--dry-run", MUOMNI_BENCH_OUT=str(tmp_path))
    log = (tmp_path / "gpu.log").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + log[-3000:]
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["rvq: parity"]["result"]["near-ties"] == {"mismatches": 0, "rows": 40}
    # What succeeded is kept; only the rest runs again.
    results["rvq: training"]["ok"] = False
    (tmp_path / "before.json").write_text(json.dumps(results))
    again = run(
        *("bench/gpu.py", "--dry-run", "--done", str(tmp_path / "before.json")),
        MUOMNI_BENCH_OUT=str(tmp_path / "again"),
    )
    assert again.stdout.count("...") == 1 and "rvq: training ..." in again.stdout


def test_peers_are_timed():
    done = run("bench/peers.py", "--rows", "512", "--processes", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("muomni_fast ") == 2 and "broadcast" in done.stdout
