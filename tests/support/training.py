"""Runs of `reference/train.py`, what they leave, and codebooks to keep alive."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from muomni_fast.reference import RVQ
from muomni_fast.reference.training.codebook_health import CodebookHealth
from support.environment import ROOT

SCRIPT = ROOT / "reference" / "train.py"


def run(
    *arguments: str | Path, timeout: float = 300, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, "--device", "cpu", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | env,
    )


def main(*arguments: str | Path) -> int:
    """The command line in this process, without the report, which takes longer than a short
    training."""
    from muomni_fast.reference import train
    from muomni_fast.reference.training import run

    with mock.patch.object(run, "write_report", return_value=""):
        return train.main(["--device", "cpu", *map(str, arguments)])


def rows(folder: Path, stage: str) -> list[dict[str, str]]:
    with open(folder / f"metrics-{stage}.csv", newline="") as file:
        return list(csv.DictReader(file))


def losses(folder: Path, stage: str, column: str = "loss") -> np.ndarray:
    return np.array([float(row[column]) for row in rows(folder, stage)])


def assert_same(a: object, b: object, where: str = "state") -> None:
    """Bit-equality of nested states."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def clustered(n: int, size: int = 16, dim: int = 8) -> torch.Tensor:
    centres = torch.randn(size, dim) * 5
    return centres[torch.randint(size, (n,))] + 0.1 * torch.randn(n, dim)


def with_dead_codes() -> tuple[RVQ, torch.Tensor]:
    rvq = RVQ(n_codebooks=2, codebook_size=16, codebook_dim=8, n_mels=8, projections=False)
    rvq.codebooks[0].weight.data[10:] = 1e4  # never the nearest
    return rvq, clustered(512)


def health_on_a_rank(rank: int, splits: list[int]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Codebooks, counts and codes revived after steps on a rank's share of the same 512 frames."""
    torch.manual_seed(0)
    rvq, mel = with_dead_codes()
    health = CodebookHealth(rvq, None, usage_decay=0.5, ema_decay=0.9)
    own, revived = mel.split(splits)[rank], 0
    for _ in range(8):
        revived += health.after_step(own, rvq.encode(own))
    return rvq.stacked_codebooks().detach(), health.counts, revived


def continued(quantizer: Path, folder: Path, **settings: Any) -> Path:
    """A copy of the quantizer's run with other settings."""
    shutil.copytree(quantizer, folder)
    document = json.loads((folder / "config.json").read_text())
    document["train"] |= settings
    (folder / "config.json").write_text(json.dumps(document))
    return folder
