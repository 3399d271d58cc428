"""The tables of tiles and launch settings, one for each architecture: `tuned/sm_90.json` and so on.

A row is one way to launch a kernel for one key (a codebook_dim, say). Where a key has several, the
one with "use" is launched; the others are what `bench/gpu_tuning.py` times beside it, "ms" what it
found. A row without "ms" was chosen from compiled code (registers, shared memory, spills:
bench/results), not by timing.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")
FOLDER = Path(__file__).with_name("tuned")
ARCHITECTURES = ("sm_80", "sm_90")


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each kernel."""
    return json.loads(path.read_text())


def write(tables: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """What `read` reads, a row a line."""
    kernels = []
    for kernel, rows in tables.items():
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        kernels.append(f" {json.dumps(kernel)}: [\n{lines}\n ]")
    path.write_text("{\n" + ",\n".join(kernels) + "\n}\n")


def config_of(row: dict[str, Any], kind: type[Config]) -> Config:
    """The settings in a row."""
    return kind(**{field.name: row[field.name] for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


def in_use(kernel: str, kind: type[Config], *keys: str) -> dict[tuple[Any, ...], Config]:
    """(architecture, *keys) -> the settings to launch a kernel with."""
    return {
        (architecture, *(row[key] for key in keys)): config_of(row, kind)
        for architecture in ARCHITECTURES
        for row in read(FOLDER / f"{architecture}.json")[kernel]
        if row["use"]
    }
