"""Codes of rows that are hard to tell apart, against the oracle: none may be wrong.

    python bench/adversarial.py [--rows 230000]         # the torch path
    python bench/adversarial.py --interpreted           # the kernels, in Triton's interpreter

Every kind of data gets its share of the rows, and is encoded unprepared and prepared; a first few
rows alone and in small batches, as those may go other ways. Exit status 1 if a code is wrong.
"""

import argparse
import os
import sys
from collections.abc import Iterator

import pytest
import torch
from rvq_problems import hard_data, random_data
from support.interpreter import round_like_tensor_cores
from support.oracle import midpoints, stagewise_mismatches, unexcused_mismatches
from torch import Tensor

import muomni_fast

ROWS, INTERPRETED_ROWS = 230_000, 1_000
SMALL = (1,) * 8 + (3, 16, 16, 100, 257, 500)  # batches before the rest, of many rows
KERNELS = {"TRITON_INTERPRET": "1", "MUOMNI_FAST_BACKEND": "triton"}
Case = tuple[Tensor, Tensor, Tensor | None]  # rows (N, n_mels), codebooks, projection
OF_DEFAULT_SHAPE = (
    "offset 10",
    "near-ties",
    "tiny codewords",
    "exact ties",
    "every code twice",
    "one codeword x 1000",
    "offset 100",
)
OF_OTHER_SHAPES = "default", "EnCodec 8 x 1024 x 128", "1 x 1000 x 8"


def cases(rows: int) -> Iterator[tuple[str, Case]]:
    """All kinds of data, so many rows in all: random ones, and midpoints of two codewords."""
    count = len(OF_DEFAULT_SHAPE) + len(OF_OTHER_SHAPES)
    each = [rows // count + (k < rows % count) for k in range(count)]
    for name, n in zip(OF_OTHER_SHAPES, each, strict=False):
        if name == "1 x 1000 x 8":
            mel, books, weight = torch.randn(n, 8), torch.randn(1, 1000, 8), None
        else:
            mel, books, weight = random_data(name, n, "cpu")
        if weight is None:
            mel[n // 2 :] = midpoints(books[0], n - n // 2)
        yield name, (mel, books, weight)
    hard = hard_data(each[0], "cpu")
    for name, n in zip(OF_DEFAULT_SHAPE, each[len(OF_OTHER_SHAPES) :], strict=True):
        mel, books = hard[name]
        yield name, (mel[:n], books, None)


@torch.no_grad()
def wrong_codes(case: Case, batches: tuple[int, ...], precision: str) -> tuple[int, int]:
    """Of one kind of data: unprepared, prepared.

    Args:
        batches: sizes of the first batches; the rest is encoded at once.
        precision: of the projection, as the oracle takes it.
    """
    mel, books, weight = case
    n_codebooks, size, dim = books.shape
    sizes = dict(n_codebooks=n_codebooks, codebook_size=size, codebook_dim=dim)
    rvq = muomni_fast.RVQ(**sizes, n_mels=mel.shape[1], projections=weight is not None).eval()
    for codebook, words in zip(rvq.codebook_weights(), books, strict=True):
        codebook.copy_(words)
    if weight is not None:
        rvq.proj_in.weight.copy_(weight)

    def wrong() -> int:
        parts = mel.split(_sizes(len(mel), batches))
        codes = torch.cat([rvq.encode(part) for part in parts])
        if weight is None:
            return stagewise_mismatches(mel, books, codes)
        return unexcused_mismatches(mel, weight, books, codes, precision)

    unprepared = wrong()
    rvq.prepare()
    return unprepared, wrong()


def _sizes(rows: int, first: tuple[int, ...]) -> list[int]:
    """Sizes of batches of so many rows in all."""
    found = []
    for size in (*first, rows):
        found.append(min(size, rows - sum(found)))
    return [size for size in found if size]


def check(rows: int, interpreted: bool = False) -> int:
    """Print rows and wrong codes of every kind; returns how many are wrong in all."""
    batches, precision = ((), "tf32x3") if interpreted else (SMALL, "ieee")
    total = 0
    print(f"{'':24} {'rows':>8}  wrong codes, unprepared and prepared")
    torch.manual_seed(0)
    for name, case in cases(rows):
        found = wrong_codes(case, batches, precision)
        print(f"{name:24} {len(case[0]):8,} {found[0]:8,} {found[1]:8,}", flush=True)
        total += sum(found)
    print(f"{'in all':24} {rows:8,} {total:8,}")
    return total


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=int, help="of all kinds together: 230,000 by default, 1,000 interpreted"
    )
    parser.add_argument("--interpreted", action="store_true", help="the kernels")
    args = parser.parse_args()
    if args.rows is not None and args.rows < 20:
        parser.error(f"--rows: expected at least 20, two of each kind, got {args.rows}")
    if not args.interpreted:
        return bool(check(args.rows or ROWS))
    if os.environ | KERNELS != os.environ:  # which must be before anything imports triton
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KERNELS)
    with pytest.MonkeyPatch.context() as patch:
        round_like_tensor_cores(patch)
        return bool(check(args.rows or INTERPRETED_ROWS, interpreted=True))


if __name__ == "__main__":
    raise SystemExit(main())
