"""CPU encoding against other libraries: exact codes here, whatever they give there.

    python bench/peers.py [--rows 65536] [--processes 5] [--out bench/results]

Every process times all contenders in turn; a contender's figure is its smallest time over the
processes, so that one busy moment of the machine spoils none. Needs the `peers` extra; what is not
installed is left out, and said.
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

import muomni_fast
from muomni_fast import reference

Contender = Callable[[], object]
THREADS = 2
ROUNDS = 3


def broadcast_search(mel: Tensor, weight: Tensor, codebooks: Tensor) -> Tensor:
    """What this library replaces: all differences of all rows to all codes, in memory at once."""
    residual, codes = mel @ weight.t(), []
    for codebook in codebooks:
        distance = (residual[:, None] - codebook).square().sum(-1)  # (N, K)
        codes.append(distance.argmin(1))
        residual = residual - codebook[codes[-1]]
    return torch.stack(codes, 1)


def default_shape(rows: int) -> dict[str, Contender]:
    """128 mels to 2 x 128 codes of 64 dimensions."""
    rvq, slow = muomni_fast.RVQ().eval(), reference.RVQ().eval()
    slow.load_state_dict(rvq.state_dict())
    mel = torch.randn(rows, 128)
    weight, codebooks = rvq.proj_in.weight, rvq.stacked_codebooks()
    contenders: dict[str, Contender] = {
        "muomni_fast": lambda: rvq.encode(mel),
        "muomni_fast.reference": lambda: slow.encode(mel),
        "broadcast": lambda: broadcast_search(mel, weight, codebooks),
    }
    try:
        from vector_quantize_pytorch import ResidualVQ

        peer = ResidualVQ(dim=128, codebook_dim=64, num_quantizers=2, codebook_size=128).eval()
        contenders["vector-quantize-pytorch"] = lambda: peer(mel[None])
    except ImportError:
        print("vector-quantize-pytorch is not installed")
    try:
        import faiss

        faiss.omp_set_num_threads(THREADS)
        quantizer = faiss.ResidualQuantizer(64, 2, 7)
        quantizer.max_beam_size = 1
        z = F.linear(mel, weight).detach().numpy()  # its projection is not counted
        quantizer.train(z[:20_000])
        contenders["faiss, greedy, no projection"] = lambda: quantizer.compute_codes(z)
    except ImportError:
        print("faiss is not installed")
    return contenders


def encodec_shape(rows: int) -> dict[str, Contender]:
    """8 x 1024 codes of 128 dimensions, no projection, an eighth of the rows."""
    mel = torch.randn(rows // 8, 128)
    rvq = muomni_fast.RVQ(8, 1024, 128, n_mels=128, projections=False).eval()
    contenders: dict[str, Contender] = {"muomni_fast": lambda: rvq.encode(mel)}
    try:
        from vector_quantize_pytorch import ResidualVQ

        peer = ResidualVQ(dim=128, num_quantizers=8, codebook_size=1024).eval()
        contenders["vector-quantize-pytorch"] = lambda: peer(mel[None])
    except ImportError:
        print("vector-quantize-pytorch is not installed")
    try:
        from transformers import EncodecConfig
        from transformers.models.encodec.modeling_encodec import EncodecResidualVectorQuantizer

        config = EncodecConfig(codebook_size=1024, codebook_dim=128, hidden_size=128)
        encodec = EncodecResidualVectorQuantizer(config).eval()
        for layer in encodec.layers:
            layer.codebook.embed.normal_()
        frames = mel.t()[None].contiguous()  # (1, D, T)
        stages = 8 * config.frame_rate * 10 / 1000  # kbit/s of eight codebooks
        assert encodec.encode(frames[..., :2], stages).shape[0] == 8
        contenders["EnCodec (transformers)"] = lambda: encodec.encode(frames, stages)
    except ImportError:
        print("transformers is not installed")
    return contenders


SHAPES = {"default": default_shape, "EnCodec 8 x 1024 x 128": encodec_shape}


@torch.no_grad()
def one_process(rows: int) -> dict[str, dict[str, float]]:
    """Smallest time of every contender, seconds, taking turns."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    results = {}
    for shape, make in SHAPES.items():
        contenders = make(rows)
        best = dict.fromkeys(contenders, float("inf"))
        for turn in range(ROUNDS + 1):
            for name, run in contenders.items():
                start = time.perf_counter()
                run()
                if turn:  # the first warms up
                    best[name] = min(best[name], time.perf_counter() - start)
        results[shape] = best
    return results


def main() -> None:
    """Run the processes, print the ratios, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for peers-cpu.json")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_process(args.rows)))
        return
    command = [sys.executable, __file__, "--one", "--rows", str(args.rows)]
    best: dict[str, dict[str, float]] = {}
    for _ in range(args.processes):
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        *notes, figures = done.stdout.splitlines()
        for shape, times in json.loads(figures).items():
            kept = best.setdefault(shape, times)
            best[shape] = {name: min(kept[name], seconds) for name, seconds in times.items()}
    print(*notes, sep="\n")
    for shape, times in best.items():
        print(f"{shape}, {args.rows} rows" if shape == "default" else shape)
        for name, seconds in times.items():
            ratio = seconds / times["muomni_fast"]
            print(f"  {name:30} {seconds * 1e3:9.1f} ms  {ratio:6.1f} x")
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
