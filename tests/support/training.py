"""Runs of `reference/train.py`, and what they leave."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

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
