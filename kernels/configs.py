"""Tile sizes and launch settings of the quantizer's kernels; `tables` has the tables themselves."""

import dataclasses

import torch

from .tables import in_use


@dataclasses.dataclass(frozen=True)
class EncodeConfig:
    """How `rvq_encode` is launched.

    Attributes:
        block_n: frames per program.
        block_m: mel bands per step of the projection.
        block_k: codes scored at once.
        block_s: codes measured at once in float64.
        precision: of the scores: "tf32", "tf32x3" or "ieee".
        num_warps, num_stages: as Triton takes them.
    """

    block_n: int
    block_m: int
    block_k: int
    block_s: int
    precision: str
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

# All a thread can have. Left alone, an assembler may halve it for a second program per
# multiprocessor, and spill.
MAX_REGISTERS = 255
# Shared memory a block may have, from which a device can take the sm_90 column of a table.
LARGE_SHARED_MEMORY = 227 * 1024
SMALLEST_TILE = 16  # of a tensor core


def power_of_two(size: int) -> int:
    """The smallest tile that holds `size`."""
    return max(SMALLEST_TILE, 1 << (size - 1).bit_length())


def row_stride(rows: torch.Tensor) -> int:
    """Elements from a row of (N, D) to the next, one of a layout's few values: a kernel is compiled
    for what divides it, so that rows are loaded in wide pieces. A single row's own stride may be
    any number, and would be compiled for."""
    return rows.stride(0) if len(rows) > 1 else rows.shape[1]


def architecture(device: torch.device) -> str:
    """The column of the tables for a device; interpreted kernels use the smaller tiles."""
    if device.type != "cuda":
        return "sm_80"
    properties = torch.cuda.get_device_properties(device)
    large = properties.shared_memory_per_block_optin >= LARGE_SHARED_MEMORY
    return "sm_90" if large else "sm_80"


def encode_config(dim: int, device: torch.device) -> EncodeConfig:
    """The row of `ENCODE` for a codebook_dim and a device."""
    return ENCODE[architecture(device), power_of_two(dim)]


def decode_config(dim: int, device: torch.device, projected: bool) -> DecodeConfig:
    """The row of `DECODE` for a codebook_dim and a device; GATHER for projected tables."""
    return GATHER if projected else DECODE[architecture(device), power_of_two(dim)]
