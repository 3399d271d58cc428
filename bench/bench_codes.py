"""The tables of `codes.py`: encoding beside bare products and other libraries, and awkward data.

`pytest bench/bench_codes.py --benchmark-only`. `codes.py` itself lets all contenders of a line take
turns, and compares with the goals.
"""

import time
from collections.abc import Callable, Iterator

import pytest
import torch

pytest.importorskip("soundfile")
import codes  # noqa: E402
import contenders  # noqa: E402
from speech_problems import AWKWARD, problem  # noqa: E402
from timing import processor_seconds  # noqa: E402

pytestmark = pytest.mark.benchmark(timer=time.process_time)

BUDGET = 0.3  # seconds of measuring per benchmark
LEAST_ROUNDS = 3

LINES = [
    (name, rows, contender)
    for name, shape in codes.SHAPES.items()
    for rows in codes.row_counts(shape.sizes)
    for contender in codes.makers(shape)
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


@pytest.fixture
def measure(benchmark) -> Callable[[str, Callable[[], object]], None]:
    """Time a function in a group of the table."""

    def run(group: str, function: Callable[[], object]) -> None:
        once = processor_seconds(function)
        rounds = max(LEAST_ROUNDS, int(BUDGET / max(once, 1e-4)))
        benchmark.group = group
        benchmark.pedantic(function, rounds=rounds)

    return run


@pytest.mark.parametrize(("shape", "rows", "contender"), LINES)
def test_speed(measure, shape: str, rows: int, contender: str) -> None:
    rvq, held_out = problem(codes.SHAPES[shape].sizes)
    try:
        run = codes.makers(codes.SHAPES[shape])[contender](rvq, held_out[:rows])
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    measure(f"codes, {shape}, {rows} rows", run)


@pytest.mark.parametrize("kind", AWKWARD)
@pytest.mark.parametrize("shape", codes.FLAT_SHAPES)
def test_flatness(measure, shape: str, kind: str) -> None:
    rvq, held_out = problem(codes.FLAT_SHAPES[shape].sizes)
    case = AWKWARD[kind](rvq, held_out[: codes.FLAT_ROWS])
    measure(f"flatness, {shape}, {codes.FLAT_ROWS} rows", contenders.prepared(*case))
