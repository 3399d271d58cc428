"""Named shapes of quantizers, and frames for them: random, and hard to tell apart."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tests_path  # noqa: F401
import torch
from support.oracle import midpoints, stagewise_mismatches, unexcused_mismatches
from torch import Tensor

from muomni_fast.kernels.rvq.encode import rvq_encode
from muomni_fast.kernels.rvq.table import search_table

# name -> (n_codebooks, codebook_size, codebook_dim), n_mels of a projection, rows to time
SHAPES: dict[str, tuple[tuple[int, int, int], int | None, int]] = {
    "default": ((2, 128, 64), 128, 1_000_000),
    "default, 16 x 10 s": ((2, 128, 64), 128, 10_000),
    "default, 1 frame": ((2, 128, 64), 128, 1),
    "EnCodec 8 x 1024 x 128": ((8, 1024, 128), None, 200_000),
    "Mimi 8 x 2048 x 256": ((8, 2048, 256), None, 100_000),
    "Lyra 46 x 16 x 64": ((46, 16, 64), None, 200_000),
    "LPCNet 4 x 2048 x 18": ((4, 2048, 18), None, 200_000),
    "9 x 1024 x 8": ((9, 1024, 8), None, 200_000),
    "2 x 1000 x 512": ((2, 1000, 512), None, 50_000),
}


@dataclasses.dataclass
class Problem:
    """Frames, codebooks and projection of one shape."""

    mel: Tensor
    books: Tensor
    weight: Tensor | None

    def __post_init__(self) -> None:
        self.half_norms = (self.books.double().square().sum(-1) / 2).float()
        self.table = search_table(self.books, mark_repeats=True)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What `torch_way` takes."""
        return self.mel, self.books, self.half_norms, self.weight

    def encode(self, exact: bool = True, config: Any = None) -> Tensor:
        """Codes by the kernel itself."""
        nonfinite = torch.zeros(1, dtype=torch.int32, device=self.mel.device)
        options = dict(exact=exact, config=config)
        arguments = self.mel, self.books, self.table, self.weight, None, nonfinite
        return rvq_encode(*arguments, **options)[0]

    def mismatches(self, codes: Tensor) -> int:
        """Against the oracle."""
        if self.weight is None:
            return stagewise_mismatches(self.mel, self.books, codes)
        return unexcused_mismatches(self.mel, self.weight, self.books, codes, "tf32x3")


def problem(name: str) -> Problem:
    """Random data of a named shape, on the GPU."""
    return Problem(*random_data(name, SHAPES[name][2], "cuda"))


def random_data(name: str, rows: int, device: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Frames, codebooks and projection of a named shape, normally distributed."""
    shape, n_mels, _ = SHAPES[name]
    torch.manual_seed(0)
    mel = torch.randn(rows, n_mels or shape[2], device=device)
    books = torch.randn(shape, device=device)
    weight = torch.randn(shape[2], n_mels, device=device) / n_mels**0.5 if n_mels else None
    return mel, books, weight


def torch_way(mel: Tensor, books: Tensor, half_norms: Tensor, weight: Tensor | None) -> Tensor:
    """The usual formulation: one product and argmin per codebook; inexact, and N x K in memory."""
    residual = mel if weight is None else mel @ weight.t()
    codes: list[Tensor] = []
    for book, norms in zip(books, half_norms, strict=True):
        scores = torch.addmm(norms, residual, book.t(), alpha=-1)
        codes.append(scores.argmin(1))
        residual = residual - book[codes[-1]]
    return torch.stack(codes, 1)


def hard_problems() -> dict[str, Callable[[], Problem]]:
    """`hard_data`, on the GPU."""
    cases = hard_data(50_000, "cuda").items()
    return {name: functools.partial(Problem, *case, None) for name, case in cases}


def hard_data(rows: int, device: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Rows and a codebook each, default shape: near-ties, exact ties, offset data, tiny and huge
    codewords, equal ones, and extreme scales."""
    _, books, _ = random_data("default, 1 frame", 1, device)
    books = books[:1]
    size, dim = books.shape[1:]
    near = midpoints(books[0].cpu(), rows).to(device)
    ties = torch.randint(-2, 3, books.shape, device=device).float()
    ties[:, size // 2 :] = ties[:, : size - size // 2]
    whole = torch.randint(-4, 5, (rows, dim), device=device).float()
    random = torch.randn(rows, dim, device=device)
    long = books.clone()
    long[:, 1] *= 1000
    return {
        "near-ties": (near, books),
        "exact ties": (whole, ties),
        "offset 10": (random + 10, books + 10),
        "offset 100": (random + 100, books + 100),
        "tiny codewords": (random, books * 1e-6),
        "one codeword x 1000": (random, long),
        "every code twice": (near, torch.cat([books[:, : size // 2]] * 2, 1)),
        "scale 1e-18": (random * 1e-18, books * 1e-18),
        "scale 1e18": (random * 1e18, books * 1e18),
    }
