"""Real training: the quick preset's quality, and beating faiss on recordings."""

import json
import re

import numpy as np
import pytest
from test_train import run

pytest.importorskip("soundfile")
pytestmark = pytest.mark.slow


def test_quick_preset(tmp_path):
    """`python reference/train.py`: log-mel L1 at most 0.8, five WAVs of length and level."""
    done = run("--out", tmp_path / "run", timeout=1500)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["vocoder"]["trained"]["mel_l1"] <= 0.8
    assert results["vocoder"]["random"]["mel_l1"] > 1.5
    rvq = results["rvq"]
    assert rvq["trained"]["mel_mse"] < rvq["start"]["mel_mse"] < rvq["random"]["mel_mse"]
    sizes = {size: figures["mel_mse"] for size, figures in rvq["sizes"].items()}
    assert sizes["2 x 128"] < sizes["1 x 128"] and sizes["1 x 256"] < sizes["2 x 16"]
    rows = re.findall(r"^\S+\.wav +(\d+) +(-?[\d.]+) +([+-][\d.]+)", done.stdout, re.MULTILINE)
    assert len(rows) == 15
    lengths = np.array([int(length) for length, _, _ in rows]).reshape(3, 5)
    assert (lengths == lengths[:, :1]).all()
    differences = [abs(float(difference)) for _, _, difference in rows]
    assert max(differences) <= 6, differences


def test_recordings_beat_faiss(tmp_path, recordings):
    """Unseen speakers: at most faiss's greedy residual quantizer, below the start, codes in use."""
    pytest.importorskip("faiss")
    from muomni_fast.reference.evaluate import evaluate
    from muomni_fast.reference.run_folder import RunFolder

    manifest = recordings.parent / "manifest.csv"
    done = run("--stage", "rvq", "--data", manifest, "--out", tmp_path / "run", timeout=900)
    assert done.returncode == 0, done.stderr
    assert "held out by speaker" in done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())["rvq"]
    figures = evaluate(RunFolder(tmp_path / "run"), None, "faiss")
    start, trained = results["start"]["mel_mse"], figures["trained"]["mel_mse"]
    print(
        f"start {start:.4f}, trained {trained:.4f}, faiss {figures['faiss greedy']['mel_mse']:.4f}"
    )
    assert trained == pytest.approx(results["trained"]["mel_mse"], rel=1e-6)
    assert trained <= figures["faiss greedy"]["mel_mse"]
    assert trained < start
    for stage in (1, 2):
        assert figures["trained"][f"usage_{stage}"] >= 0.95
