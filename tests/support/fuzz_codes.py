"""Broken files of codes, and what reading one must come to.

Half of them get the checksum that their content needs, or no change would come further than it.
"""

import zlib
from pathlib import Path

import numpy as np

from muomni_fast import CodeFileError, CodeInfo, MelConfig, read_codes
from muomni_fast.code_files import CHECKSUM, to_bytes
from support.fuzz import Figures, Limits, fuzz, mutate

LIMITS = Limits(seconds=1.0, bytes_per_byte=64, bytes_besides=1 << 20)
SIZES = (2, 3, 100, 128, 1024, 1 << 16)  # codes of a codebook


def fuzz_codes(files: int, seed: int, folder: Path) -> Figures:
    """Read broken files of codes; arguments as of `fuzz`."""
    random = np.random.default_rng(0)
    samples = {}
    for index, size in enumerate(SIZES):
        pooling = ("mean", "stack")[index % 2]
        info = CodeInfo(
            5000 * (index + 1), index + 1, size, "5a" * 32, MelConfig(), index + 1, pooling, 44100
        )
        codes = random.integers(0, size, (info.steps, info.n_codebooks))
        samples[f"{size}.muc"] = to_bytes(codes, info)
    return fuzz(samples, _read, LIMITS, files, seed, folder, _change)


def _change(content: bytes, other: bytes, random: np.random.Generator) -> bytes:
    content = mutate(content, other, random)
    if random.integers(2) and len(content) > CHECKSUM.size:
        content = content[: -CHECKSUM.size]
        content += CHECKSUM.pack(zlib.crc32(content))
    return content


def _read(path: Path) -> bool:
    """Whether a file is read: then it is what would be written of its codes."""
    try:
        codes, info = read_codes(path)
    except CodeFileError as error:
        assert str(path) in str(error) and len(str(error)) < 1000, f"{error!r:.300}"
        return False
    assert codes.dtype == np.uint16 and codes.max() < info.codebook_size
    assert to_bytes(codes, info) == path.read_bytes()
    return True
