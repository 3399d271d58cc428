"""Tile sizes and launch settings, one visible table per kernel.

Chosen from compiled code (registers, shared memory, spills: bench/results), not yet by timing.
"""

import dataclasses

import torch


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
ENCODE = {
    ("sm_90", 16): EncodeConfig(128, 32, 128, 64, "tf32", 8, 2),
    ("sm_90", 32): EncodeConfig(128, 32, 128, 64, "tf32", 8, 2),
    ("sm_90", 64): EncodeConfig(128, 32, 128, 32, "tf32", 8, 2),
    ("sm_90", 128): EncodeConfig(64, 32, 64, 16, "tf32", 8, 2),
    ("sm_90", 256): EncodeConfig(32, 32, 64, 16, "tf32", 8, 1),
    ("sm_90", 512): EncodeConfig(16, 32, 32, 16, "tf32", 8, 1),
    ("sm_80", 16): EncodeConfig(128, 32, 64, 32, "tf32", 8, 2),
    ("sm_80", 32): EncodeConfig(128, 32, 64, 32, "tf32", 8, 2),
    ("sm_80", 64): EncodeConfig(64, 32, 64, 32, "tf32", 8, 2),
    ("sm_80", 128): EncodeConfig(64, 32, 64, 32, "tf32", 8, 1),
    ("sm_80", 256): EncodeConfig(32, 32, 32, 16, "tf32", 8, 1),
    ("sm_80", 512): EncodeConfig(16, 32, 16, 16, "tf32", 8, 1),
}


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
DECODE = {
    ("sm_90", 16): DecodeConfig(64, 16, 64, 4, 2),
    ("sm_90", 32): DecodeConfig(64, 32, 64, 4, 2),
    ("sm_90", 64): DecodeConfig(64, 64, 64, 4, 2),
    ("sm_90", 128): DecodeConfig(64, 128, 32, 4, 2),
    ("sm_90", 256): DecodeConfig(16, 256, 32, 8, 1),
    ("sm_80", 16): DecodeConfig(64, 16, 64, 4, 2),
    ("sm_80", 32): DecodeConfig(64, 32, 64, 4, 2),
    ("sm_80", 64): DecodeConfig(64, 64, 32, 8, 2),
    ("sm_80", 128): DecodeConfig(32, 128, 16, 8, 1),
    ("sm_80", 256): DecodeConfig(16, 256, 32, 8, 1),
}


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
