"""Broken files, made from valid ones, and what reading each of them may cost."""

import time
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

HEADER_BYTES = 128  # where most of what a reader believes is
NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, -1)


class Limits(NamedTuple):
    """What reading one file may take, at most: seconds, and bytes for each byte of it and besides.

    Bytes are those that Python and numpy allocate.
    """

    seconds: float
    bytes_per_byte: int
    bytes_besides: int


class Figures(NamedTuple):
    """Files tried, read and refused; the slowest in seconds, and the most bytes allocated."""

    files: int
    read: int
    refused: int
    slowest: float
    peak: int

    def __str__(self) -> str:
        return (
            f"{self.files:,} files: {self.read:,} read, {self.refused:,} refused, "
            f"slowest {self.slowest * 1e3:.0f} ms, peak {self.peak / 2**20:.1f} MiB"
        )


def mutate(content: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """`content` with one to three things changed; `other` may lend it bytes."""
    for _ in range(random.integers(1, 4)):
        change = CHANGES[random.integers(len(CHANGES))]
        content = bytes(change(bytearray(content), other, random))
    return content


def fuzz(
    samples: Mapping[str, bytes],
    read: Callable[[Path], bool],
    limits: Limits,
    files: int,
    seed: int,
    folder: Path,
    change: Callable[[bytes, bytes, np.random.Generator], bytes] = mutate,
) -> Figures:
    """Read `files` broken files, all of which are functions of `samples` and `seed`.

    Args:
        samples: valid files by name.
        read: reads a file and checks the answer; False where it is refused as it should be.
        limits: of each file.
        files, seed: how many, and which.
        folder: to write to; the file at fault is left there, as the only one named broken-*.
        change: breaks a file, as `mutate` does.

    Raises:
        AssertionError: a limit exceeded. What `read` raises is passed on.
    """
    random = np.random.default_rng(seed)
    names = sorted(samples)
    for name in names:  # so that what is loaded at first use is not counted
        (folder / name).write_bytes(samples[name])
        assert read(folder / name), f"{folder / name}: a valid file was refused"
    refused, slowest, most = 0, 0.0, 0
    tracemalloc.start()
    try:
        for index in range(files):
            name = names[index % len(names)]
            content = change(samples[name], samples[names[random.integers(len(names))]], random)
            path = folder / f"broken-{index}-{name}"
            path.write_bytes(content)
            tracemalloc.reset_peak()
            before, start = tracemalloc.get_traced_memory()[0], time.perf_counter()
            refused += not read(path)
            seconds = time.perf_counter() - start
            peak = tracemalloc.get_traced_memory()[1] - before
            assert seconds <= limits.seconds, f"{path}: took {seconds:.1f} s"
            allowed = limits.bytes_per_byte * len(content) + limits.bytes_besides
            assert peak <= allowed, f"{path}: allocated {peak:,} bytes, {allowed:,} are allowed"
            slowest, most = max(slowest, seconds), max(most, peak)
            path.unlink()
    finally:
        tracemalloc.stop()
    return Figures(files, files - refused, refused, slowest, most)


def _bytes_of_header(content: bytearray, _: bytes, random: np.random.Generator) -> bytearray:
    for at in random.integers(0, min(HEADER_BYTES, len(content) + 1), random.integers(1, 5)):
        content[at : at + 1] = random.bytes(1)
    return content


def _number_of_header(content: bytearray, _: bytes, random: np.random.Generator) -> bytearray:
    width = int(random.choice([1, 2, 4, 8]))
    at = int(random.integers(0, HEADER_BYTES // 2)) * 2
    near = len(content) + int(random.integers(-64, 64))  # a size that is almost right
    number = (*NUMBERS, near)[random.integers(len(NUMBERS) + 1)] % (1 << 8 * width)
    order = "little" if random.integers(2) else "big"
    content[at : at + width] = number.to_bytes(width, order)
    return content


def _bits(content: bytearray, _: bytes, random: np.random.Generator) -> bytearray:
    for _ in range(random.integers(1, 64)):
        if content:
            content[random.integers(len(content))] ^= 1 << random.integers(8)
    return content


def _truncated(content: bytearray, _: bytes, random: np.random.Generator) -> bytearray:
    end = len(content) if random.integers(2) else HEADER_BYTES
    return content[: random.integers(0, end + 1)]


def _spliced(content: bytearray, other: bytes, random: np.random.Generator) -> bytearray:
    cut = int(random.integers(0, HEADER_BYTES if random.integers(2) else len(content) + 1))
    return content[:cut] + other[int(random.integers(0, len(other))) :]


def _repeated(content: bytearray, _: bytes, random: np.random.Generator) -> bytearray:
    at = int(random.integers(0, len(content) + 1))
    part = content[at : at + int(random.integers(1, 4096))]
    times = int(random.integers(0, 5))  # none at all: it is cut out
    return content[:at] + part * times + content[at + len(part) :]


def _followed(content: bytearray, other: bytes, random: np.random.Generator) -> bytearray:
    tails = bytes(10_000), random.bytes(1000), other
    return content + tails[random.integers(len(tails))]


CHANGES = (
    *(_bytes_of_header, _number_of_header, _bits, _truncated, _spliced, _repeated, _followed),
    *(_bytes_of_header, _number_of_header),  # twice as often: what a header says is believed
)
