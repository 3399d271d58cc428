"""CPU encoding against other libraries: exact codes here, whatever they give there.

    python bench/peers.py [--rows 65536] [--processes 5] [--out bench/results]

Each contender runs in processes of its own, so that none inherits another's threads or allocator,
the contenders' processes taking turns; its figure is the smallest time in any of them. faiss runs
a second time with an allocator that keeps freed memory (MALLOC_MMAP_THRESHOLD_): by default it
spends more than half of its time on page faults. Needs the `peers` extra; what is not installed is
left out, and said.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import contenders
import torch
from contenders import Make
from timing import about, made_folder

from muomni_fast import reference

THREADS = 2
ROUNDS = 3
KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31)}
WIDE = dict(n_codebooks=8, codebook_size=1024, codebook_dim=128, n_mels=128, projections=False)

# shape -> what quantizes, which share of the rows it gets, contender -> how to make it
SHAPES: dict[str, tuple[dict[str, int | bool], int, dict[str, Make]]] = {
    "default": (
        {},
        1,
        {
            "muomni_fast": contenders.fast,
            "muomni_fast.reference": contenders.plain,
            "broadcast": contenders.broadcast,
            "vector-quantize-pytorch": contenders.vector_quantize,
            "faiss, greedy": contenders.faiss_greedy,
            "faiss, greedy, keeping memory": contenders.faiss_greedy,
        },
    ),
    "EnCodec, 8 x 1024 x 128": (
        WIDE,
        8,
        {
            "muomni_fast": contenders.fast,
            "vector-quantize-pytorch": contenders.vector_quantize,
            "EnCodec (transformers)": contenders.encodec,
        },
    ),
}


@torch.no_grad()
def seconds(shape: str, contender: str, rows: int) -> float | None:
    """Smallest time of a contender in this process; None if it is not installed."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    sizes, share, makers = SHAPES[shape]
    rvq = reference.RVQ(**sizes).eval()
    try:
        run = makers[contender](rvq, torch.randn(rows // share, rvq.n_mels))
    except ModuleNotFoundError:
        return None
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])  # the first warms up


def measure(rows: int, processes: int) -> dict[str, dict[str, float]]:
    """Smallest time of each contender over its processes; without those not installed."""
    best: dict[str, dict[str, float]] = {shape: {} for shape in SHAPES}
    for _ in range(processes):
        for shape, (*_, makers) in SHAPES.items():
            for name in makers:
                command = [sys.executable, __file__, "--rows", str(rows), "--one", shape, name]
                env = os.environ | (KEEPING if "keeping" in name else {})
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
                figure = json.loads(done.stdout.splitlines()[-1])
                if figure is not None:
                    best[shape][name] = min(figure, best[shape].get(name, figure))
    return best


def main() -> None:
    """Run the processes, print the ratios, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--out", type=made_folder, help="folder for peers-cpu.json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(seconds(*args.one, args.rows)))
        return
    best = measure(args.rows, args.processes)
    for shape, (*_, makers) in SHAPES.items():
        print(shape)
        for name in makers:
            if name not in best[shape]:
                print(f"  {name:30} is not installed")
                continue
            ratio = best[shape][name] / best[shape]["muomni_fast"]
            print(f"  {name:30} {best[shape][name] * 1e3:9.1f} ms  {ratio:6.1f} x")
    if args.out:
        found = about(THREADS, contenders.PACKAGES)
        found |= {"rows": args.rows, "processes": args.processes, "seconds": best}
        (args.out / "peers-cpu.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
