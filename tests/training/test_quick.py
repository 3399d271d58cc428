"""Real training: the quick preset's quality, and beating faiss on recordings."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support.oracle import unexcused_mismatches
from support.training import losses, main, run

import muomni_fast
from muomni_fast.reference import log_mel

pytest.importorskip("soundfile")
from muomni_fast.reference.checkpoint import load_model, load_state  # noqa: E402
from muomni_fast.reference.training.clips import find_clips  # noqa: E402
from muomni_fast.reference.training.data import read_clip  # noqa: E402
from muomni_fast.reference.training.run_folder import RunFolder  # noqa: E402
from muomni_fast.reference.training.rvq_stage import RVQRecipe, RVQStage  # noqa: E402

pytestmark = pytest.mark.slow


def test_quick_preset(tmp_path):
    """`python reference/train.py`: log-mel L1 at most 0.8, five WAVs of length and level, and a
    Talker that has learned its sentences by heart."""
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
    assert rvq["trained"]["mel_mse"] <= 0.45
    talker = results["talker"]
    assert talker["recalled"]["of"] == 20 and talker["recalled"]["exact"] >= 18
    assert len(talker["ranks"]) == 6 and all(r["of"] == 20 for r in talker["ranks"])
    assert (
        len(re.findall(r"^(?:training-)?1-\S+-talker-hifigan\.wav", done.stdout, re.MULTILINE)) == 2
    )
    rows = re.findall(
        r"^\d-\S+-(?:mel|codec|orig)\S+\.wav +(\d+) +(-?[\d.]+) +([+-][\d.]+)",
        done.stdout,
        re.MULTILINE,
    )
    assert len(rows) == 15
    lengths = np.array([int(length) for length, _, _ in rows]).reshape(3, 5)
    assert (lengths == lengths[:, :1]).all()
    differences = [abs(float(difference)) for _, _, difference in rows]
    assert max(differences) <= 6, differences


def test_recordings_beat_faiss(tmp_path, recordings, caplog, monkeypatch):
    """Unseen speakers: at most faiss's greedy residual quantizer, below the start, codes in use."""
    pytest.importorskip("faiss")
    from muomni_fast.reference.training.evaluation import evaluate

    manifest = recordings.parent / "manifest.csv"
    monkeypatch.setitem(RVQStage.recipes, "quick", RVQRecipe())  # 2 x 128 codes of single frames
    options = ["--frames-per-code", "1", "--pooling", "mean"]
    assert main(*options, "--stage", "rvq", "--data", manifest, "--out", tmp_path / "run") == 0
    assert "held out by speaker" in caplog.text
    results = json.loads((tmp_path / "run" / "results.json").read_text())["rvq"]
    figures = evaluate(RunFolder(tmp_path / "run"), None, "faiss")
    start, trained = results["start"]["mel_mse"], figures["trained"]["mel_mse"]
    print(
        f"start {start:.4f}, trained {trained:.4f}, faiss {figures['faiss greedy']['mel_mse']:.4f}"
    )
    assert trained == pytest.approx(results["trained"]["mel_mse"], rel=1e-6)
    assert trained <= figures["faiss greedy"]["mel_mse"]
    assert trained < start
    for q in (1, 2):
        assert figures["trained"][f"usage_{q}"] >= 0.95
    assert_codes_of_all_recordings_are_exact(tmp_path / "run", recordings)


def assert_codes_of_all_recordings_are_exact(run_folder: Path, recordings: Path) -> None:
    """Through the trained codec, on the fast path."""
    saved = load_model(RunFolder(run_folder).model("rvq"), "rvq")
    rvq = muomni_fast.RVQ(**saved.config)
    load_state(rvq, saved.state, run_folder)
    config = saved.mel
    clips = find_clips(recordings.parent / "manifest.csv")
    mels = [log_mel(read_clip(clip, config.sample_rate)[None], config)[0].T for clip in clips]
    frames = torch.cat(mels)  # (N, n_mels)
    assert len(frames) > 80_000
    weight, books = rvq.proj_in.weight.detach(), rvq.stacked_codebooks().detach()
    assert unexcused_mismatches(frames, weight, books, rvq.encode(frames)) == 0


def test_the_fast_quantizer_trains_like_the_reference(tmp_path):
    """200 steps on the shipped speech, same seed: losses of the first 32 steps within 2e-5, the
    final held-out error within 1 %."""
    curves, errors = [], []
    for backend in ("reference", "fast"):
        out = tmp_path / backend
        options = ["--stage", "rvq", "--steps", "200", "--backend", backend]
        assert main(*options, "--out", out) == 0
        curves.append(losses(out, "rvq"))
        results = json.loads((out / "results.json").read_text())["rvq"]
        errors.append(results["trained"]["mel_mse"])
    np.testing.assert_allclose(curves[1][:32], curves[0][:32], rtol=2e-5)
    assert errors[1] == pytest.approx(errors[0], rel=0.01)
    print(errors, np.abs(curves[1] / curves[0] - 1).max())
