"""CPU encoding against other libraries: exact codes here, whatever they give there.

    python bench/peers.py [--rows 65536] [--processes 5] [--out bench/results]

Each contender runs in processes of its own, so that none inherits another's threads or allocator,
the contenders' processes taking turns; its figure is the smallest time in any of them. faiss runs
a second time with an allocator that keeps freed memory (MALLOC_MMAP_THRESHOLD_): by default it
spends more than half of its time on page faults. Needs the `peers` extra; what is not installed is
left out, and said.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import muomni_fast
from muomni_fast import reference

Contender = Callable[[], object]
THREADS = 2
ROUNDS = 3
KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31)}


def broadcast_search(mel: Tensor, weight: Tensor, codebooks: Tensor) -> Tensor:
    """What this library replaces: all differences of all rows to all codes, in memory at once."""
    residual, codes = mel @ weight.t(), []
    for codebook in codebooks:
        distance = (residual[:, None] - codebook).square().sum(-1)  # (N, K)
        codes.append(distance.argmin(1))
        residual = residual - codebook[codes[-1]]
    return torch.stack(codes, 1)


def codec(rows: int, fast: bool = True, **shape: int | bool) -> Contender:
    """Ours, or the plain reference."""
    rvq = (muomni_fast if fast else reference).RVQ(**shape).eval()
    mel = torch.randn(rows, rvq.n_mels)
    return lambda: rvq.encode(mel)


def broadcast(rows: int) -> Contender:
    """The formulation this library replaces, default shape."""
    rvq, mel = reference.RVQ(), torch.randn(rows, 128)
    weight, codebooks = rvq.proj_in.weight, rvq.stacked_codebooks()
    return lambda: broadcast_search(mel, weight, codebooks)


def vector_quantize(rows: int, dim: int, **shape: int) -> Contender:
    """vector-quantize-pytorch, in eval mode."""
    from vector_quantize_pytorch import ResidualVQ

    peer, mel = ResidualVQ(dim=dim, **shape).eval(), torch.randn(1, rows, dim)
    return lambda: peer(mel)


def faiss_greedy(rows: int) -> Contender:
    """faiss's residual quantizer with a beam of one; spared the projection."""
    import faiss

    faiss.omp_set_num_threads(THREADS)
    quantizer, z = faiss.ResidualQuantizer(64, 2, 7), torch.randn(rows, 64).numpy()
    quantizer.max_beam_size = 1
    quantizer.train(z[:20_000])
    return lambda: quantizer.compute_codes(z)


def encodec(rows: int) -> Contender:
    """EnCodec's quantizer as transformers has it, eight codebooks."""
    from transformers import EncodecConfig
    from transformers.models.encodec.modeling_encodec import EncodecResidualVectorQuantizer

    config = EncodecConfig(codebook_size=1024, codebook_dim=128, hidden_size=128)
    peer = EncodecResidualVectorQuantizer(config).eval()
    for layer in peer.layers:
        layer.codebook.embed.normal_()
    frames = torch.randn(1, 128, rows)
    bandwidth = 8 * config.frame_rate * 10 / 1000  # kbit/s of eight codebooks
    assert len(peer.encode(frames[..., :2], bandwidth)) == 8
    return lambda: peer.encode(frames, bandwidth)


# shape -> contender -> how to make it for a number of rows
WIDE = dict(n_codebooks=8, codebook_size=1024, codebook_dim=128, n_mels=128, projections=False)
SHAPES: dict[str, dict[str, Callable[[int], Contender]]] = {
    "default": {
        "muomni_fast": codec,
        "muomni_fast.reference": lambda rows: codec(rows, fast=False),
        "broadcast": broadcast,
        "vector-quantize-pytorch": lambda rows: vector_quantize(
            rows, dim=128, codebook_dim=64, num_quantizers=2, codebook_size=128
        ),
        "faiss, greedy": faiss_greedy,
        "faiss, greedy, keeping memory": faiss_greedy,
    },
    "EnCodec, 8 x 1024 x 128": {
        "muomni_fast": lambda rows: codec(rows // 8, **WIDE),
        "vector-quantize-pytorch": lambda rows: vector_quantize(
            rows // 8, dim=128, num_quantizers=8, codebook_size=1024
        ),
        "EnCodec (transformers)": lambda rows: encodec(rows // 8),
    },
}


@torch.no_grad()
def seconds(shape: str, contender: str, rows: int) -> float | None:
    """Smallest time of a contender in this process; None if it is not installed."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    try:
        run = SHAPES[shape][contender](rows)
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
        for shape, contenders in SHAPES.items():
            for name in contenders:
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
    parser.add_argument("--out", type=Path, help="folder for peers-cpu.json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(seconds(*args.one, args.rows)))
        return
    best = measure(args.rows, args.processes)
    for shape, contenders in SHAPES.items():
        print(shape)
        for name in contenders:
            if name not in best[shape]:
                print(f"  {name:30} is not installed")
                continue
            ratio = best[shape][name] / best[shape]["muomni_fast"]
            print(f"  {name:30} {best[shape][name] * 1e3:9.1f} ms  {ratio:6.1f} x")
    if args.out:
        about = {
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {THREADS} threads",
            "torch": torch.__version__,
            "rows": args.rows,
            "processes": args.processes,
            "seconds": best,
        }
        (args.out / "peers-cpu.json").write_text(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
