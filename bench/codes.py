"""Codes on a CPU, one thread, with codebooks of real speech: three tables.

    python bench/codes.py [--rows 1 16 100 500 2048 8192] [--out bench/results]

1. Speed: ours, prepared, beside the bare matrix products and the quantizers of other libraries.
2. Flatness: the time of awkward data, as a multiple of that of ordinary data.
3. Unprepared against prepared, a single frame.

All are medians of five rounds in which the contenders of a line take turns, in one process;
processor time, which on one thread is what the clock says when nothing else runs.
Goals beside the products, that of the projection among them: 60 us and 40 us a codebook more for
few rows, a factor for many. A peer marked ! is faster than ours, by more than 3 %.

`speech_problems.py` says what the codebooks and rows are. The bare products multiply all rows at
once or blocks of 512, whichever is faster, into a reused buffer, without residuals. Needs the
`train` extra to read audio, and the `peers` extra; what is not installed is left out, and said.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import contenders
import torch
from contenders import PACKAGES, Make
from speech_problems import (
    AWKWARD,
    DEFAULT,
    ENCODEC,
    MIMI,
    XCODEC,
    Data,
    Sizes,
    problem,
    repeated,
    speech,
)
from timing import about, interleaved, made_folder
from torch import Tensor

from muomni_fast import reference

Seconds = dict[str, float | None]  # None: not installed
ROWS = (1, 16, 100, 500, 2_048, 8_192)
FLAT_ROWS = 2_048
MOST_PRODUCTS = 35e9  # multiplications of a cell: about a second
BLOCK = 512
OURS, BARE, BLOCKS = "muomni_fast", "products", "products, blocks"
# What is allowed beside the bare products of few rows, and times over those of ordinary data.
CALL, CODEBOOK = 60e-6, 40e-6
FLAT, UNPREPARED = 1.5, 2.5
EQUAL = 0.97  # of our time: a peer that takes less is faster


@dataclasses.dataclass(frozen=True)
class Shape:
    """A line of the speed table's; `factor` over the bare products is the goal from `rows` on."""

    sizes: Sizes
    peers: dict[str, Make]
    factor: float = 1.4
    rows: int = 500

    def goal(self, rows: int, bare: float) -> float:
        """Seconds that so many rows may take whose bare products take `bare`."""
        if rows >= self.rows:
            return self.factor * bare
        return bare + CALL + self.sizes.n_codebooks * CODEBOOK


VQT = {"vector-quantize-pytorch": contenders.vector_quantize}
SHAPES = {
    "EnCodec 8 x 1024 x 128": Shape(ENCODEC, VQT | {"EnCodec, transformers": contenders.encodec}),
    "Mimi 7 x 2048 x 256": Shape(MIMI, VQT | {"Mimi, transformers": contenders.mimi}),
    "Xcodec 8 x 1024 x 1024": Shape(XCODEC, VQT | {"Xcodec, transformers": contenders.xcodec}),
    "default 2 x 128 x 64, from 128": Shape(
        DEFAULT, VQT | {"EnCodec, transformers": contenders.encodec}, 1.8, 2_048
    ),
}
FLAT_SHAPES = {name: shape for name, shape in SHAPES.items() if shape.sizes in (ENCODEC, DEFAULT)}
SINGLE_SHAPES: dict[str, Callable[[], Data]] = {
    "default 2 x 128 x 64": lambda: problem(DEFAULT),
    "EnCodec 8 x 1024 x 128": lambda: problem(ENCODEC),
    "Mimi 7 x 2048 x 256": lambda: problem(MIMI),
    "31 x 2048 x 256, Mimi's": lambda: repeated(problem(MIMI), 31),
}


def makers(shape: Shape) -> dict[str, Make]:
    """What is timed at a shape."""
    return {
        OURS: contenders.prepared,
        BARE: contenders.products,
        BLOCKS: functools.partial(contenders.products, block=BLOCK),
        **shape.peers,
    }


def row_counts(sizes: Sizes, asked: tuple[int, ...] = ROWS) -> list[int]:
    """Those asked for; what would take long is halved until it does not."""
    each = sizes.n_codebooks * sizes.codebook_size * sizes.codebook_dim
    found = []
    for rows in asked:
        while rows > 1 and rows * each > MOST_PRODUCTS:
            rows //= 2
        found.append(rows)
    return sorted(set(found))


def speed(shape: Shape, rows: int, rvq: reference.RVQ, held_out: Tensor) -> dict[str, Any]:
    """One line: rows, seconds of all contenders, and the shares of codes equal to ours."""
    runs, missing = {}, {}
    for name, make in makers(shape).items():
        try:
            runs[name] = make(rvq, held_out[:rows])
        except ModuleNotFoundError:
            missing[name] = None
    seconds = interleaved(runs)
    codes = runs[OURS]()
    equal = {
        name: float((runs[name]() == codes).double().mean()) for name in shape.peers if name in runs
    }
    return {"rows": rows, "seconds": seconds | missing, "equal": equal}


def bare(seconds: Seconds) -> float:
    """The faster products."""
    return min(seconds[BARE], seconds[BLOCKS])


def flatness(rvq: reference.RVQ, rows: Tensor) -> dict[str, float]:
    """Seconds of ours, prepared, with every kind of data."""
    runs = {name: contenders.prepared(*change(rvq, rows)) for name, change in AWKWARD.items()}
    return interleaved(runs)


def single(rvq: reference.RVQ, rows: Tensor) -> dict[str, float]:
    """Seconds of a single frame, unprepared and prepared."""
    ways = {"unprepared": contenders.fast, "prepared": contenders.prepared}
    return interleaved({name: make(rvq, rows[:1]) for name, make in ways.items()})


def print_speed(name: str, shape: Shape, lines: list[dict[str, Any]]) -> None:
    """One shape's part of the table."""
    print(f"\n{name}; milliseconds, peers also as a multiple of ours")
    heads = [f"{peer:>26}" for peer in shape.peers]
    print(
        f"{'rows':>6} {'products':>9} {OURS:>12} {'ratio':>6} {'excess':>9} {'goal':>9}     ",
        *heads,
    )
    for line in lines:
        print(_speed_line(shape, line))
    for peer in shape.peers:
        if lines[-1]["seconds"][peer] is None:
            print(f"  {peer} is not installed")
        else:
            print(f"  {peer}: {lines[-1]['equal'][peer]:.4%} of its codes equal ours")


def _speed_line(shape: Shape, line: dict[str, Any]) -> str:
    rows, seconds = line["rows"], line["seconds"]
    products, ours = bare(seconds), seconds[OURS]
    few = rows < shape.rows
    cells = [f"{rows:6,} {1e3 * products:9.3f} {1e3 * ours:12.3f}"]
    goal = shape.goal(rows, products)
    excess = f"{1e6 * (ours - products):6.0f} us" if few else ""
    limit = f"{1e6 * (goal - products):6.0f} us" if few else f"{shape.factor:7.2f} x"
    verdict = "met" if ours <= goal else "not"
    cells.append(f"{ours / products:6.2f} {excess:>9} {limit:>9} {verdict}")
    for peer in shape.peers:
        value = seconds[peer]
        if value is None:
            cells.append(" " * 26)
        else:
            mark = "!" if value < EQUAL * ours else " "
            cells.append(f"{1e3 * value:14.3f} {value / ours:8.2f} x{mark}")
    return " ".join(cells)


def print_flatness(name: str, seconds: dict[str, float]) -> None:
    """One shape's part of the table."""
    print(f"\n{name}, prepared, {FLAT_ROWS:,} rows: time over ordinary data's (goal {FLAT})")
    for case, value in seconds.items():
        ratio = value / seconds["ordinary"]
        print(f"  {case:26} {1e3 * value:9.2f} ms {ratio:7.2f} x {_verdict(ratio, FLAT)}")


def print_single(found: dict[str, dict[str, float]]) -> None:
    """The table of single frames."""
    print(f"\nOne frame, unprepared and prepared (goal {UNPREPARED})")
    for name, seconds in found.items():
        ratio = seconds["unprepared"] / seconds["prepared"]
        times = " ".join(f"{1e3 * value:9.3f} ms" for value in seconds.values())
        print(f"  {name:26} {times} {ratio:7.2f} x {_verdict(ratio, UNPREPARED)}")


def _verdict(ratio: float, goal: float) -> str:
    return "met" if ratio <= goal else "not"


@torch.no_grad()
def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="of the first table")
    parser.add_argument("--out", type=made_folder, help="folder for codes-cpu.json")
    args = parser.parse_args()
    if min(args.rows) < 1:
        parser.error(f"--rows: expected positive numbers, got {min(args.rows)}")
    torch.set_num_threads(1)
    found = about(1, PACKAGES) | {"speech": speech()[0]}
    print(", ".join([found["machine"], f"torch {found['torch']}", found["date"], found["speech"]]))
    for package, version in found["versions"].items():
        print(f"{package} {version}")
    tables: dict[str, Any] = {"speed": {}, "flatness": {}, "single frame": {}}
    for name, shape in SHAPES.items():
        rvq, held_out = problem(shape.sizes)
        counts = row_counts(shape.sizes, tuple(args.rows))
        tables["speed"][name] = [speed(shape, rows, rvq, held_out) for rows in counts]
        print_speed(name, shape, tables["speed"][name])
    for name, shape in FLAT_SHAPES.items():
        rvq, held_out = problem(shape.sizes)
        tables["flatness"][name] = flatness(rvq, held_out[:FLAT_ROWS])
        print_flatness(name, tables["flatness"][name])
    tables["single frame"] = {n: single(*make()) for n, make in SINGLE_SHAPES.items()}
    print_single(tables["single frame"])
    if args.out:
        (args.out / "codes-cpu.json").write_text(json.dumps(found | tables, indent=1))


if __name__ == "__main__":
    main()
