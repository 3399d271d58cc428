"""Runs that are killed, run out of disk, or have clips with names as long as names can be."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.environment import ROOT

soundfile = pytest.importorskip("soundfile")
for module in ("safetensors", "soxr", "matplotlib", "tqdm"):
    pytest.importorskip(module)

from muomni_fast.reference import atomic, train  # noqa: E402

pytestmark = pytest.mark.slow


def test_kills_and_failing_disks_lose_nothing_and_leave_nothing_behind():
    """Some of what `make kills` does."""
    script = ROOT / "tests" / "support" / "kills.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", "4", "--faults", "3"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]


def test_clips_with_long_names_are_reported_and_a_full_disk_then_is_named(
    tmp_path, monkeypatch, capsys
):
    data, folder = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for i in range(3):
        name = f"{'é' * 100}{'x' * 38}{i}"  # 239 bytes
        noise = 0.1 * np.random.default_rng(i).standard_normal(4000)
        soundfile.write(data / f"{name}.wav", noise, 16000)
    options = ["--device", "cpu", "--preset", "smoke", "--stage", "rvq", "--steps", "2"]
    assert train.main([*options, "--data", str(data), "--out", str(folder)]) == 0
    pictures = sorted(path.name for path in folder.glob("mels-*.png"))
    sounds = sorted(path.name for path in (folder / "audio").iterdir())
    assert len(pictures) == 1 and len(sounds) == 3
    assert pictures[0].startswith(f"mels-1-{'é' * 40}")

    real = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == name:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(atomic.os, "replace", full)
    for name in (sounds[0], pictures[0], "losses.png"):
        assert train.main(["--device", "cpu", "--resume", str(folder)]) == 1
        assert f"/{name}: cannot write" in capsys.readouterr().err
    assert not list(filter(atomic.is_leftover, folder.rglob("*")))


def test_names_are_shortened_alike_and_only_where_they_are_too_long(tmp_path):
    assert atomic.shortened("a" * 100, 100) == "a" * 100
    for name in ("a" * 101, "é" * 51, os.fsdecode(b"\xe9" * 101)):
        short = atomic.shortened(name, 100)
        assert short == atomic.shortened(name, 100) != atomic.shortened(name + "b", 100)
        assert len(short.encode()) <= 100
    longest = tmp_path / ("x" * 251 + ".wav")
    atomic.write_atomically(longest, b"content")
    assert [path.name for path in tmp_path.iterdir()] == [longest.name]


def test_what_killed_writes_left_is_removed_and_nothing_else(tmp_path):
    ours = [tmp_path / ".state.pt.tmp", tmp_path / "audio" / ".1-a.wav.tmp"]
    others = [tmp_path / "state.pt", tmp_path / "audio" / "a.tmp", tmp_path / ".lock"]
    (tmp_path / "audio").mkdir()
    for path in ours + others:
        path.write_bytes(b"")
    atomic.remove_leftovers(tmp_path)
    assert not any(Path.exists(path) for path in ours) and all(Path.exists(p) for p in others)
