"""What was measured, as text and as JSON."""

import dataclasses
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..atomic import write_atomically
from .measure import Table
from .metrics import METRICS, versions

BASIS = ("muomni-fast", "soundfile", "soxr")  # whose versions every figure depends on


@dataclasses.dataclass(frozen=True)
class Result:
    """All that one evaluation found.

    Attributes:
        settings: what was asked for, and of which files.
        clips: how many were "chosen" and how many were "measured".
        table: figures by row and metric.
        left_out: metrics that could not be had, and why.
        quantizer: held-out figures of the quantizer alone, by its name; {} where there is none.
    """

    settings: dict[str, Any]
    clips: dict[str, int]
    table: Table
    left_out: Mapping[str, str]
    quantizer: dict[str, dict[str, float]]


def as_text(result: Result) -> str:
    """The table, what was left out, and what was refused."""
    lines = [f"{result.clips['measured']} of {result.clips['chosen']} clips"]
    measured = [n for n in METRICS if any(n in columns for columns in result.table.values())]
    if measured:
        lines += ["", *_aligned(_cells(result.table, measured))]
    notes = [f"{METRICS[n].heading}: left out: {why}" for n, why in result.left_out.items()]
    for name in measured:
        columns = [columns[name] for columns in result.table.values()]
        if METRICS[name].reads and not any(c.figures or c.refused for c in columns):
            notes.append(f"{METRICS[name].heading}: left out: no clip has a text")
    for row, by_name in result.table.items():
        for name, column in by_name.items():
            for reason, count in sorted(column.refused.items()):
                notes.append(f"{METRICS[name].heading}: {row}: {count} clips refused: {reason}")
    if notes:
        lines += ["", *notes]
    if result.quantizer:
        lines += ["", "the quantizer alone, held-out log-mels:"]
        for name, figures in result.quantizer.items():
            written = (f"{key} {value:.4f}" for key, value in figures.items())
            lines.append(f"{name:<14}{'  '.join(written)}")
    return "\n".join(lines)


def _cells(table: Table, names: Sequence[str]) -> list[list[str]]:
    cells = [["", *(METRICS[name].heading for name in names)]]
    for row, columns in table.items():
        figures = []
        for name in names:
            metric, mean = METRICS[name], columns[name].mean()
            figures.append("-" if mean is None else f"{mean * metric.scale:.{metric.digits}f}")
        cells.append([row, *figures])
    return cells


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in cells
    ]


def write_json(path: Path, result: Result) -> None:
    """Write all of it, with the versions it was measured with, atomically.

    Figures that are not finite, which JSON lacks, become null.

    Raises:
        CheckpointError: the file cannot be written.
    """
    used = [n for n in METRICS if any(n in columns for columns in result.table.values())]
    document = {
        "settings": result.settings,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            **{name: importlib.metadata.version(name) for name in BASIS},
            **versions(used),
        },
        "clips": result.clips,
        "rows": {
            row: {name: column.as_json() for name, column in columns.items()}
            for row, columns in result.table.items()
        },
        "left_out": dict(result.left_out),
        "quantizer": {
            name: {key: value if math.isfinite(value) else None for key, value in row.items()}
            for name, row in result.quantizer.items()
        },
    }
    write_atomically(path, json.dumps(document, indent=2, allow_nan=False).encode() + b"\n")
