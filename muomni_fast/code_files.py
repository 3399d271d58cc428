"""Files of codes: what `muomni-fast encode` writes, documented byte by byte in docs/code-files.md.

A header of HEADER.size bytes, the codes packed at their bit width, and a checksum. The header says
how long the file must be, so that nothing is allocated for codes that are not there.
"""

import dataclasses
import math
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from .reference.atomic import write_atomically
from .reference.audio.mel import POOLINGS, MelConfig, require_pooling
from .reference.codec import SpeechCodec
from .reference.errors import CheckpointError, CodeFileError
from .reference.reading import open_regular
from .reference.rvq.digest import quantizer_digest
from .reference.values import MOST_CODEBOOKS, MOST_HOP, require_int, require_text, shown

SUFFIX = ".muc"
# As PNG's: a program that takes the file for text, or strips the eighth bit, changes these.
MAGIC = b"\x89MUC\r\n\x1a\n"
VERSION = 1
# Magic, version, integers and numbers of the MelConfig; frames per code, pooling, bits of a code,
# codebooks, codes of each, the original's rate, samples, the original's frames; the model's digest.
HEADER = struct.Struct("<8sI5I3dIBBHIIQQ32s")
CHECKSUM = struct.Struct("<I")  # CRC-32 of all before it, as zlib's
INTEGERS = "sample_rate", "n_fft", "win_length", "hop_length", "n_mels"
NUMBERS = "fmin", "fmax", "log_floor"
MOST_SIZE = 1 << 16  # codes of a codebook: what uint16 holds
MOST_LENGTH = 1 << 48  # samples; 500 years
MOST_RATE = 1 << 24  # Hz, of an original
RANGES = {
    "length": (1, MOST_LENGTH),
    "n_codebooks": (1, MOST_CODEBOOKS),
    "codebook_size": (2, MOST_SIZE),
    "frames_per_code": (1, MOST_HOP),
    "source_rate": (0, MOST_RATE),
    "source_frames": (0, MOST_LENGTH),
}
OTHERS = {  # what files begin with that people may take for codes
    b"RIFF": "a WAV file",
    b"fLaC": "a FLAC file",
    b"OggS": "an Ogg file",
    b"ID3": "an MP3 file",
    b"PK\3\4": "a zip archive, as .npz is",
    b"PAR1": "a Parquet file",
    b"\x93NUMPY": "an array that numpy saved",
}
BLOCK = 1 << 16  # codes packed at once, a multiple of 8: so many take whole bytes at any width


@dataclasses.dataclass(frozen=True)
class CodeInfo:
    """All that is needed to know what decodes a clip's codes, and to how many samples.

    Args:
        length: of the clip, samples at `mel.sample_rate`, at least 1.
        n_codebooks: codes of a step, 1 to 256.
        codebook_size: codes per codebook, 2 to 65,536.
        model: sha256 of the quantizer, 64 hexadecimal digits.
        mel: settings of the mels that were encoded.
        frames_per_code, pooling: how their frames became codes.
        source_rate, source_frames: sample rate (Hz) and samples per channel of the file that was
            encoded; 0 where not known.

    Raises:
        TypeError: an argument is of another type.
        ValueError: one is out of range; the message names it.
    """

    length: int
    n_codebooks: int
    codebook_size: int
    model: str
    mel: MelConfig
    frames_per_code: int = 1
    pooling: str = "mean"
    source_rate: int = 0
    source_frames: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            object.__setattr__(self, name, require_int(name, getattr(self, name), least, most))
        require_pooling(self.pooling)
        if not re.fullmatch("[0-9a-f]{64}", require_text("model", self.model)):
            raise ValueError(f"model: expected 64 hexadecimal digits, got {shown(self.model)}")
        if not isinstance(self.mel, MelConfig):
            raise TypeError(f"mel: expected a MelConfig, got {type(self.mel).__name__}")

    @classmethod
    def of(
        cls,
        codec: SpeechCodec,
        length: int,
        n_codebooks: int | None = None,
        source_rate: int = 0,
        source_frames: int = 0,
    ) -> Self:
        """What belongs to the codes that a codec makes of a clip: `muomni-fast decode` takes a file
        with it.

        Args:
            codec: whose `encode` made the codes. Its quantizer's weights are read: for many clips
                call this once, and `dataclasses.replace` the rest.
            length: of the clip, samples at `codec.config.sample_rate`.
            n_codebooks: how many were used; None is all.
            source_rate, source_frames: of the file that was encoded, if that is known.

        Raises:
            TypeError: an argument is of another type.
            ValueError: one is out of range; the message names it.
        """
        if not isinstance(codec, SpeechCodec):
            raise TypeError(f"codec: expected a SpeechCodec, got {type(codec).__name__}")
        most = codec.rvq.n_codebooks
        books = most if n_codebooks is None else require_int("n_codebooks", n_codebooks, 1, most)
        model = quantizer_digest(codec.rvq, codec.frames_per_code, codec.pooling)
        return cls(
            *(length, books, codec.rvq.codebook_size, model, codec.config),
            *(codec.frames_per_code, codec.pooling, source_rate, source_frames),
        )

    @property
    def steps(self) -> int:
        """S, the code steps of the clip: ceil(ceil(length / hop_length) / frames_per_code)."""
        return -(-self.mel.n_frames(self.length) // self.frames_per_code)

    @property
    def seconds(self) -> float:
        """Duration of the clip."""
        return self.length / self.mel.sample_rate

    @property
    def bits_per_second(self) -> float:
        """Of the codes alone, at log2(codebook_size) bits each."""
        steps_per_second = self.mel.frame_rate / self.frames_per_code
        return steps_per_second * self.n_codebooks * math.log2(self.codebook_size)


def fields_of(info: CodeInfo) -> dict[str, Any]:
    """All that a `CodeInfo` holds in one level: the mel's settings under `mel_` and their names."""
    fields = dataclasses.asdict(info)
    mel = fields.pop("mel")
    return fields | {f"mel_{name}": value for name, value in mel.items()}


def info_of(fields: Mapping[str, Any]) -> CodeInfo:
    """The `CodeInfo` that `fields_of` took apart; raises KeyError, TypeError, ValueError."""
    names = [field.name for field in dataclasses.fields(CodeInfo) if field.name != "mel"]
    mel = {field.name: fields[f"mel_{field.name}"] for field in dataclasses.fields(MelConfig)}
    return CodeInfo(**{name: fields[name] for name in names}, mel=MelConfig(**mel))


def write_codes(path: str | Path, codes: np.ndarray, info: CodeInfo) -> None:
    """Write a file of codes, atomically.

    Args:
        path: of the file; `.muc` is its usual ending.
        codes: (S, Q) integers below `info.codebook_size`, S = `info.steps`, Q = `info.n_codebooks`.
        info: the rest.

    Raises:
        TypeError: the codes are no array of integers.
        ValueError: they do not fit `info`.
        CheckpointError: the file cannot be written; the previous one, if any, is intact.
    """
    write_atomically(path, to_bytes(codes, info))


def read_codes(path: str | Path) -> tuple[np.ndarray, CodeInfo]:
    """Read what `write_codes` wrote.

    Args:
        path: of the file.

    Returns:
        codes (S, Q) uint16, and the rest.

    Raises:
        CodeFileError: the file is missing, no regular one, of another kind or version, longer or
            shorter than its header says, damaged, or holds a value out of range; names the file and
            the value.
    """
    try:
        with open_regular(path) as (file, size):
            head = file.read(HEADER.size)
            info = _read_header(head, size)
            body = file.read(size - HEADER.size)
        return _read_codes(head, body, info), info
    except CheckpointError as error:  # which names the file
        raise CodeFileError(str(error)) from error
    except (TypeError, ValueError) as error:
        raise CodeFileError(f"{path}: {error}") from error


def to_bytes(codes: np.ndarray, info: CodeInfo) -> bytes:
    """The content of a file of codes; raises as `write_codes`."""
    require_codes(codes, info)
    mel, width = info.mel, bits_per_code(info.codebook_size)
    head = HEADER.pack(
        *(MAGIC, VERSION, *(getattr(mel, name) for name in (*INTEGERS, *NUMBERS))),
        *(info.frames_per_code, POOLINGS.index(info.pooling), width),
        *(info.n_codebooks, info.codebook_size, info.source_rate, info.length),
        *(info.source_frames, bytes.fromhex(info.model)),
    )
    content = head + pack(codes.reshape(-1), width)
    return content + CHECKSUM.pack(zlib.crc32(content))


def require_codes(codes: np.ndarray, info: CodeInfo) -> None:
    """Raise unless codes are what `info` says."""
    if not isinstance(codes, np.ndarray) or codes.dtype.kind not in "iu":
        got = codes.dtype if isinstance(codes, np.ndarray) else type(codes).__name__
        raise TypeError(f"codes: expected an array of integers, got {got}")
    if codes.shape != (info.steps, info.n_codebooks):
        expected = f"({info.steps}, {info.n_codebooks}) for {info.length:,} samples"
        raise ValueError(f"codes: expected {expected}, got {codes.shape}")
    if codes.min() < 0 or codes.max() >= info.codebook_size:
        expected = f"0 to {info.codebook_size - 1}"
        raise ValueError(f"codes: expected {expected}, got {codes.min()} to {codes.max()}")


def bits_per_code(codebook_size: int) -> int:
    """ceil(log2(codebook_size))."""
    return (codebook_size - 1).bit_length()


def pack(codes: np.ndarray, width: int) -> bytes:
    """Codes (n,) of `width` bits one after the other, the highest bit first; zeros fill the last
    byte."""
    parts = []
    for start in range(0, len(codes), BLOCK):
        block = codes[start : start + BLOCK]
        bits = np.empty((len(block), width), np.uint8)
        for place in range(width):
            bits[:, place] = (block >> (width - 1 - place)) & 1
        parts.append(np.packbits(bits).tobytes())
    return b"".join(parts)


def unpack(content: bytes, count: int, width: int) -> np.ndarray:
    """What `pack` packed: (count,) uint16.

    Raises:
        ValueError: bits after the last code are not zero.
    """
    codes = np.empty(count, np.uint16)
    packed = np.frombuffer(content, np.uint8)
    for start in range(0, count, BLOCK):
        n = min(BLOCK, count - start)
        at = start * width // 8
        bits = np.unpackbits(packed[at : at + packed_size(n, width)])
        if bits[n * width :].any():
            raise ValueError("damaged: expected zeros after the last code")
        rows = bits[: n * width].reshape(n, width)
        block = codes[start : start + n]
        block[:] = 0
        for place in range(width):
            block <<= 1
            block |= rows[:, place]
    return codes


def packed_size(count: int, width: int) -> int:
    """Bytes of so many codes of `width` bits."""
    return -(-count * width // 8)


def _read_header(head: bytes, size: int) -> CodeInfo:
    """What a header says, if it fits a file of `size` bytes."""
    if not head.startswith(MAGIC):
        kinds = [kind for begin, kind in OTHERS.items() if head.startswith(begin)]
        kind = "an empty file" if not head else kinds[0] if kinds else "something else"
        raise ValueError(f"not a file of codes (.muc) but {kind}")
    if len(head) < HEADER.size:
        raise ValueError(f"expected a header of {HEADER.size} bytes, got {len(head)}")
    _, version, *values = HEADER.unpack(head)
    if version != VERSION:
        raise ValueError(f"expected version {VERSION}, got {version}")
    mel = dict(zip((*INTEGERS, *NUMBERS), values[:8], strict=True))
    per_code, pooling, width, n_codebooks, codebook_size, rate, length, frames, model = values[8:]
    if pooling >= len(POOLINGS):
        raise ValueError(f"pooling: expected 0 to {len(POOLINGS) - 1}, got {pooling}")
    info = CodeInfo(
        *(length, n_codebooks, codebook_size, model.hex(), MelConfig(**mel)),
        *(per_code, POOLINGS[pooling], rate, frames),
    )
    expected = bits_per_code(codebook_size)
    if width != expected:
        raise ValueError(f"bits per code: expected {expected} for {codebook_size}, got {width}")
    whole = HEADER.size + packed_size(info.steps * n_codebooks, width) + CHECKSUM.size
    if size != whole:
        raise ValueError(f"expected {whole:,} bytes for {length:,} samples, got {size:,}")
    return info


def _read_codes(head: bytes, body: bytes, info: CodeInfo) -> np.ndarray:
    """Codes of what follows a header, which has been found to have the right length."""
    packed, (checksum,) = body[: -CHECKSUM.size], CHECKSUM.unpack(body[-CHECKSUM.size :])
    found = zlib.crc32(packed, zlib.crc32(head))
    if found != checksum:
        raise ValueError(f"damaged: its checksum is {found:08x}, but it says {checksum:08x}")
    count = info.steps * info.n_codebooks
    codes = unpack(packed, count, bits_per_code(info.codebook_size))
    codes = codes.reshape(info.steps, info.n_codebooks)
    require_codes(codes, info)
    return codes
