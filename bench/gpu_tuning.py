"""Steps of `gpu.py` that time the rows of the kernels' tables, and write tables to commit.

Rows of `kernels/tuned/<architecture>.json` for encoding at three shapes and for bfloat16
convolutions of the default generator are timed, the "ms" of each noted and the fastest marked
"use". A convolution's rows are timed in a whole stage of residual blocks, step by step, those of a
strip against the fastest of these: where strips lose, none is marked.
MUOMNI_BENCH_OUT/<architecture>.json is the table with what was found; look at it, run the tests and
`bench/aot.py` with it, and commit it.
"""

import contextlib
import functools
import os
import unittest.mock
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tests_path  # noqa: F401
import torch
import triton
from gpu_step import Figures, Step, captured
from rvq_problems import SHAPES, problem
from support.vocoder_problems import always_grouped
from timing import milliseconds
from torch import Tensor

import muomni_fast
from muomni_fast.kernels import launch, tables
from muomni_fast.kernels.rvq.configs import EncodeConfig
from muomni_fast.kernels.vocoder import configs as conv_configs
from muomni_fast.kernels.vocoder.configs import ConvConfig
from muomni_fast.vocoder import triton_backend as triton_vocoder
from muomni_fast.vocoder import triton_mrf
from muomni_fast.vocoder.plan import blocks_of, plan_of_blocks

Row = dict[str, Any]
# (channels, items, rows) of the default generator's stages, 1 s each.
STAGES = (
    (16, 16, 16128),
    (32, 16, 8064),
    (64, 16, 4032),
    (128, 16, 504),
    (128, 1, 504),
    (64, 1, 4032),
)
TAPS, DILATIONS = (3, 5, 7), ((1, 2),) * 3
QUICK = 0.1  # seconds for one timing


def table_path() -> Path:
    """Where the table goes."""
    name = f"{launch.architecture(torch.device('cuda'))}.json"
    return Path(os.environ["MUOMNI_BENCH_OUT"]) / name


def tuned_so_far() -> dict[str, list[Row]]:
    """The table as earlier steps of this run left it, else the one that is shipped."""
    path = table_path()
    return tables.read(path if path.exists() else tables.FOLDER / path.name)


def time_rows(
    figures: Figures, kernel: str, rows: list[Row], key: Row, run: Callable[[Row], float | str]
) -> Row | None:
    """Time the rows of a key, note "ms" in each, mark the fastest; None if none runs."""
    mine = [row for row in rows if all(row[name] == value for name, value in key.items())]
    for row in mine:
        settings = {n: v for n, v in row.items() if n not in (*key, "use", "ms")}
        row["ms"] = figures.take(f"{kernel} {key} {settings}", lambda row=row: _timed(run, row))
    timed = [row for row in mine if isinstance(row["ms"], float)]
    if not timed:
        return None
    best = min(timed, key=lambda row: row["ms"])
    for row in mine:
        row["use"] = row is best
    return best


def _timed(run: Callable[[Row], float | str], row: Row) -> float | str:
    try:
        return run(row)
    except triton.runtime.errors.OutOfResources as error:
        return str(error)  # this row asks for more than the device has


def encoding(figures: Figures) -> None:
    """Rows of `rvq_encode`, by codebook_dim."""
    found = tuned_so_far()
    for name in ("default", "EnCodec 8 x 1024 x 128", "Mimi 8 x 2048 x 256"):
        case = problem(name)

        def run(row: Row, case: Any = case) -> float:
            config = tables.config_of(row, EncodeConfig)
            return milliseconds(lambda: case.encode(config=config), budget=QUICK)

        time_rows(figures, "encode", found["encode"], {"dim": SHAPES[name][0][2]}, run)
        tables.write(found, table_path())


def stage(channels: int, items: int, rows: int) -> Callable[[], Tensor]:
    """A stage of residual blocks in bfloat16, ready to run; captured, as hosts are slow."""
    torch.manual_seed(0)
    mrf = muomni_fast.MRF(channels, TAPS, DILATIONS).to("cuda", torch.bfloat16)
    blocks = blocks_of(list(mrf.resblocks))
    tensors = [t.detach() for t in plan_of_blocks(list(mrf.resblocks)).tensors()]
    x = torch.randn(items, rows, channels, device="cuda", dtype=torch.bfloat16)
    packed = triton_vocoder.pack_blocks(tensors, blocks)
    return lambda: triton_vocoder.mrf(x, packed, blocks, False)[0]


@contextlib.contextmanager
def convolving_with(config: ConvConfig) -> Iterator[None]:
    """Every convolution, step by step, with this tile."""
    step_by_step = unittest.mock.patch.object(triton_mrf, "strip_config", always_grouped)
    table = unittest.mock.patch.dict(conv_configs.CONV, dict.fromkeys(conv_configs.CONV, config))
    no_small = unittest.mock.patch.dict(conv_configs.SMALL_GRID, clear=True)
    with step_by_step, table, no_small:
        yield


@contextlib.contextmanager
def in_strips(row: Row, channels: int) -> Iterator[None]:
    """Stages of so many channels in one launch with this row."""
    key = launch.architecture(torch.device("cuda")), 2, channels
    entry = tables.config_of(row, ConvConfig), row["programs_per_multiprocessor"]
    with unittest.mock.patch.dict(conv_configs.STRIP, {key: entry}):
        yield


def convolutions(stages: tuple[tuple[int, int, int], ...], figures: Figures) -> None:
    """Rows of the convolution's tables and of strips', by channels."""
    found = tuned_so_far()
    for channels, items, rows in stages:
        run = stage(channels, items, rows)
        few = items == 1  # fewer programs than multiprocessors, where that table counts

        def grouped(row: Row, run: Any = run) -> float:
            with convolving_with(tables.config_of(row, ConvConfig)):
                return milliseconds(captured(run), budget=QUICK)

        def strips(row: Row, run: Any = run, shape: Any = (items, rows, channels)) -> float | str:
            x = torch.empty(shape, device="cuda", dtype=torch.bfloat16)
            with in_strips(row, shape[2]):
                if conv_configs.strip_config(x, TAPS, DILATIONS, True) is None:
                    return "strips would be too short or too few"
                return milliseconds(captured(run), budget=QUICK)

        columns = {"bytes": 2, "columns": channels}
        usual = next(row for row in found["conv"] if row["use"] and columns.items() <= row.items())
        if few:
            label = f"conv {columns}, {items} x {rows}: usual tile"
            usual_ms = figures.take(label, functools.partial(grouped, usual))
            best = time_rows(
                figures, "conv, small grid", found["conv, small grid"], columns, grouped
            )
            if best is not None and best["ms"] >= usual_ms:
                best["use"] = False
        else:
            best = time_rows(figures, "conv", found["conv"], columns, grouped) or usual
            key = {"bytes": 2, "channels": channels}
            # Few rows are summed in the order of many, and strips in that of steps: same bits.
            for row in [*found["conv, small grid"], *found["strip"]]:
                width = row.get("columns") or max(16, row["channels"])
                if (row["bytes"], width) == (2, channels):
                    row["block_k"] = best["block_k"]
            strip = time_rows(figures, "strip", found["strip"], key, strips)
            if strip is not None and strip["ms"] >= best["ms"]:
                strip["use"] = False
        tables.write(found, table_path())


STEPS = [
    Step("rvq: tuning", 150, encoding),
    Step("vocoder: tuning", 200, functools.partial(convolutions, STAGES)),
]
