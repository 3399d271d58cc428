"""Tile sizes and launch settings of the quantizer's kernels; the tables are in `tuned/`."""

import dataclasses

import torch

from .. import launch
from ..launch import power_of_two
from ..tables import in_use


@dataclasses.dataclass(frozen=True)
class EncodeConfig:
    """How `rvq_encode` is launched.

    Attributes:
        block_n: frames per program.
        block_m: mel bands per step of the projection.
        block_k: codes scored at once.
        block_s: codes measured at once where scores do not decide.
        num_warps, num_stages: as Triton takes them.
    """

    block_n: int
    block_m: int
    block_k: int
    block_s: int
    num_warps: int
    num_stages: int


# (architecture, smallest power of two >= codebook_dim) -> config
ENCODE = in_use("encode", EncodeConfig, "dim")


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How `rvq_decode` is launched.

    Attributes:
        block_n: frames per program.
        block_d: columns per program, or all of them with a projection.
        block_m: mel bands multiplied at once.
        num_warps, num_stages: as Triton takes them.
    """

    block_n: int
    block_d: int
    block_m: int
    num_warps: int
    num_stages: int


# With nothing to multiply, on every architecture.
GATHER = DecodeConfig(32, 128, 16, 4, 1)
DECODE = in_use("decode", DecodeConfig, "dim")  # as ENCODE


@dataclasses.dataclass(frozen=True)
class CodeSumsConfig:
    """How `code_sums` is launched: rows and columns at once, and warps."""

    block_r: int
    block_d: int
    num_warps: int


CODE_SUMS = CodeSumsConfig(32, 64, 4)


def decode_config(dim: int, device: torch.device, projected: bool) -> DecodeConfig:
    """The row of `DECODE` for a codebook_dim and a device; GATHER for projected tables."""
    return GATHER if projected else DECODE[launch.architecture(device), power_of_two(dim)]
