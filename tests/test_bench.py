"""The benchmarks' own commands work: before a GPU or an hour is spent."""

import concurrent.futures
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
import report
from gpu_step import Step, append, read_lines
from support.environment import ROOT
from support.tiles import assert_sums_alike

from muomni_fast.kernels import tables

pytestmark = pytest.mark.long

LEFT_OUT = ("TRITON_INTERPRET", "MUOMNI_BENCH_OUT")
ENV = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=ENV | env, cwd=ROOT
    )


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory) -> Path:
    """What rehearsals of all steps but compilation leave, in two processes."""
    names = {step.name for step in gpu.all_steps()} - {"compilation"}
    tests = {"tests marked gpu"}
    outs = [tmp_path_factory.mktemp("rehearsed") for _ in range(2)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        command = "bench/gpu.py", "--rehearse", "names", "--steps"
        runs = [
            pool.submit(run, *command, *sorted(steps), MUOMNI_BENCH_OUT=str(out))
            for out, steps in zip(outs, (names - tests, tests), strict=True)
        ]
    for done in (run.result() for run in runs):
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for line in read_lines(outs[1] / "figures.jsonl"):
        append(outs[0] / "figures.jsonl", line)
    return outs[0]


def test_every_step_runs(rehearsed):
    lines = read_lines(rehearsed / "figures.jsonl")
    found = {(line["step"], line["figure"]) for line in lines}
    steps = {step for step, _ in found}
    assert steps == {step.name for step in gpu.all_steps()} - {"compilation"}
    predicted = json.loads((ROOT / "bench" / "predictions.json").read_text())
    assert {(line["step"], line["figure"]) for line in predicted} <= found
    outcomes = {line["figure"]: line["value"] for line in lines if "::" in line["figure"]}
    assert len(outcomes) > 100 and set(outcomes.values()) <= {"passed", "skipped"}


def test_tuning_leaves_a_table_to_commit(rehearsed):
    tuned, shipped = (tables.read(f / "sm_90.json") for f in (rehearsed, tables.FOLDER))
    assert tuned.keys() == shipped.keys()
    timed = [row for kernel in ("encode", "conv", "strip") for row in tuned[kernel] if row["ms"]]
    assert len(timed) > 40
    assert_sums_alike(tuned)
    for kernel, rows in shipped.items():
        found = {"use", "ms"} | ({"block_k"} if kernel in ("conv, small grid", "strip") else set())
        without = lambda rows, found=found: [
            {n: v for n, v in r.items() if n not in found} for r in rows
        ]
        assert without(tuned[kernel]) == without(rows)


@pytest.fixture
def step(monkeypatch, tmp_path):
    """Run a step as `gpu.py` does, in this process; returns its figures, or its error."""

    def run_step(take, path=tmp_path / "figures.jsonl"):
        monkeypatch.setattr(gpu, "all_steps", lambda: [Step("a", 1, take)])
        gpu.run_one("a", path)
        return [line["figure"] for line in read_lines(path)]

    return run_step


def test_a_stop_loses_one_figure(step, tmp_path):
    """What is known is not measured again, and a line that was cut short does no harm."""

    def stopped(figures):
        figures.take("first", lambda: 1)
        figures.take("second", lambda: exit(1))

    with pytest.raises(SystemExit):
        step(stopped)
    path = tmp_path / "figures.jsonl"
    with path.open("a") as file:
        file.write('{"step": "a", "fig')

    def whole(figures):
        assert figures.take("first", lambda: exit(2)) == 1
        figures.take("second", lambda: 2)

    assert step(whole) == ["first", "second"]


def test_figures_are_written_before_anything_is_asserted(step, tmp_path):
    def wrong(figures):
        figures.put("share", 2)
        figures.check(False, "share: 2 of the bound")
        figures.put("later", 1)

    with pytest.raises(AssertionError, match="share: 2 of the bound"):
        step(wrong)
    lines = read_lines(tmp_path / "figures.jsonl")
    assert [line["figure"] for line in lines] == ["share", "later"]


def test_what_failed_starts_again_and_what_was_stopped_goes_on():
    figure = {"step": "a", "figure": "x", "value": 1}
    known = lambda error: gpu.known_figures([figure, {"step": "a", "error": error}], "a")
    assert known("exit 1; see gpu.log") == {}
    assert known("out of time") == known(gpu.CHECKS) == {"x": 1}
    assert gpu.known_figures([figure], "a") == {"x": 1} and gpu.known_figures([figure], "b") == {}


def test_steps_end_with_the_budget_and_go_on_later(tmp_path, monkeypatch):
    def process(name, *_):
        append(tmp_path / "ran", {"step": name})
        return {"b": "out of time", "c": gpu.CHECKS}.get(name), 1.0

    monkeypatch.setattr(gpu, "_run_process", process)
    (tmp_path / "figures.jsonl").touch()
    names = [("a", 60), ("b", 60), ("c", 60)]
    assert not gpu.run_all(names, tmp_path, 100, {}) and not gpu.run_all(names, tmp_path, 0, {})
    assert not gpu.run_all(names, tmp_path, 100, {})
    ran = [line["step"] for line in read_lines(tmp_path / "ran")]
    assert ran == ["a", "b", "c", "b"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_kernels_compiled_ahead_and_carried_elsewhere_are_found(tmp_path, monkeypatch):
    """As on a GPU machine: nothing is compiled there that was carried along."""
    caches = tmp_path / "here", tmp_path / "there"
    for name in LEFT_OUT:
        monkeypatch.delenv(name, raising=False)
    compiled = run(
        *("-c", AHEAD_OF_TIME, str(tmp_path / "figures.jsonl")),
        TRITON_CACHE_DIR=str(caches[0]),
        PYTHONPATH=str(ROOT / "bench"),
    )
    assert compiled.returncode == 0, compiled.stderr[-3000:]
    count = lambda folder, kind="cubin": len(list(folder.glob(f"*/*.{kind}")))
    assert count(caches[0]) == count(caches[0], "ptx") == 1
    archive = tmp_path / "cache.tar.xz"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(caches[0]))
    gpu.pack(archive)
    shutil.rmtree(caches[0])
    done = run(
        *("bench/gpu.py", "--rehearse", "--steps", PEERS, "--cache", str(archive)),
        TRITON_CACHE_DIR=str(caches[1]),
        MUOMNI_BENCH_OUT=str(tmp_path / "out"),
    )
    assert done.returncode == 0, done.stdout + (tmp_path / "out" / "gpu.log").read_text()[-3000:]
    # What is compiled leaves its PTX, which was not packed.
    assert count(caches[1]) == 1 and count(caches[1], "ptx") == 0


PEERS = "rvq: one-stage peers"  # one kernel
AHEAD_OF_TIME = f"""
import gpu_machine, gpu_step, pathlib, sys
if __name__ == "__main__":
    figures = gpu_step.Figures("", pathlib.Path(sys.argv[1]), {{}})
    gpu_machine.compile_ahead(figures, [{PEERS!r}], 1)
    figures.finish()
"""


def test_the_page_of_results_is_what_the_files_say():
    page = (ROOT / "bench" / "RESULTS.md").read_text()
    assert report.BEGIN + report.report() + report.END in page


def test_runs_on_a_gpu_appear_beside_floors_and_predictions():
    line = {"step": "s", "figure": "f", "floor": 0.2, "predicted": [1, 2]}
    assert report._measured({"f": 1.5}, line) == "1.5 (7.5 x floor; as predicted)"
    assert report._measured({"f": 3, "floor": 0.1}, line) == "3 (30.0 x floor; above)"
    assert report._measured({}, line) == "not yet measured"


@pytest.mark.usefixtures("interpreter")
def test_ways_through_the_library_stay_short():
    """Calls, files and changes of file of four trips, against their goals."""
    done = run("bench/ways.py", "--calls")
    assert done.returncode == 0, done.stdout + done.stderr


def test_peers_are_timed():
    done = run("bench/peers.py", "--rows", "512", "--processes", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("muomni_fast ") == 2 and "broadcast" in done.stdout
