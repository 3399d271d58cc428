"""How long a function takes on a device."""

import statistics
import time
from collections.abc import Callable

import torch


def milliseconds(run: Callable[[], object], budget: float = 0.5, rounds: int = 200) -> float:
    """Median time of a call, by events on a GPU, after a warm-up, within `budget` seconds or so."""
    run()
    start = time.perf_counter()
    run()
    if not torch.cuda.is_available():
        once = time.perf_counter() - start
        times = [once]
        for _ in range(min(rounds, int(budget / max(once, 1e-6)))):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return 1e3 * statistics.median(times)
    torch.cuda.synchronize()
    once = time.perf_counter() - start
    pairs = []
    for _ in range(max(5, min(rounds, int(budget / max(once, 1e-6))))):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)
