"""What the header of an audio file declares about its samples.

libsndfile forgives much: it reads a file that ends early as if it were that short, and takes odd
bit depths for others. Here the header is read a second time, and what it declares is held against
the file's size and against what libsndfile makes of it.
"""

import dataclasses
import os
import struct
from io import FileIO
from typing import NamedTuple

from ..errors import AudioFormatError

# Bytes a sample takes, by libsndfile's names; every other sample format is compressed.
SAMPLE_BYTES = {
    **{"PCM_S8": 1, "PCM_U8": 1, "ULAW": 1, "ALAW": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4},
    **{"FLOAT": 4, "DOUBLE": 8},
}
BITS = {8, 16, 24, 32, 64}
# A file without padding has less than twenty. What is read of a file does not grow with its size.
MAX_CHUNKS = 1000


@dataclasses.dataclass(frozen=True)
class Chunks:
    """How a container lays its chunks out: a name, a size, and as many bytes.

    Attributes:
        header: of a chunk, its name and its size.
        start: bytes before the first chunk.
        align: chunks start at multiples of this.
        format: the name of the chunk that describes the samples.
        bits: where in it the bits per sample are, after the frames where it says those.
        samples: the name of the chunk that holds the samples.
        skip: bytes in it before the first sample.
        sized_with_header: a chunk's size counts its header.
    """

    header: str
    start: int
    align: int
    format: bytes
    bits: str
    samples: bytes
    skip: int = 0
    sized_with_header: bool = False


RIFF = Chunks("<4sI", 12, 2, b"fmt ", "<14xH", b"data")
CONTAINERS = {  # by the first four bytes
    b"RIFF": RIFF,  # WAV
    b"RIFX": dataclasses.replace(RIFF, header=">4sI", bits=">14xH"),
    b"RF64": RIFF,
    # W64's names are 16 bytes long; the first four tell them apart.
    b"riff": dataclasses.replace(RIFF, header="<4s12xQ", start=40, align=8, sized_with_header=True),
    b"FORM": Chunks(">4sI", 12, 2, b"COMM", ">2xIH", b"SSND", skip=8),  # AIFF
    b"caff": Chunks(">4sQ", 8, 1, b"desc", ">28xI", b"data", skip=4),
}
AU_ORDERS = {b".snd": ">", b"dns.": "<"}


class Declared(NamedTuple):
    """Where samples start, and how many there are by the header: in bytes, None where it says that
    it does not know, and in frames, None where it does not say; and the bits of one, where it says.
    """

    start: int
    size: int | None
    frames: int | None = None
    bits: int | None = None


def check_declared(file: FileIO, subtype: str, channels: int, frames: int) -> None:
    """Hold a header against the file's size, and against what libsndfile found.

    A size with all bits set is how a program says that it could not know the length, as it wrote
    into a pipe: such a file has samples up to its end.

    Args:
        file: open, unbuffered, and of a container whose header declares the length in bytes. Its
            position is changed.
        subtype: of SAMPLE_BYTES.
        channels, frames: as libsndfile found.

    Raises:
        AudioFormatError: truncated, an unusual sample format, no header where one should be, or
            another length than libsndfile found.
        struct.error: the header leads past the end of the file.
    """
    path = file.name
    length = os.fstat(file.fileno()).st_size
    file.seek(0)
    magic = file.read(4)
    if magic in AU_ORDERS:
        start, size = struct.unpack(AU_ORDERS[magic] + "II", file.read(8))
        declared = Declared(start, None if size == 0xFFFFFFFF else size)
    elif magic in CONTAINERS:
        declared = _of_chunks(file, CONTAINERS[magic], length)
    else:
        raise AudioFormatError(f"{path}: something else precedes its header: {magic!r}")
    if declared.bits is not None and declared.bits not in BITS:
        raise AudioFormatError(f"{path}: {declared.bits} bits per sample are not supported")
    held = length - declared.start
    size = held if declared.size is None else declared.size
    if size > held:
        raise AudioFormatError(
            f"{path}: truncated: declares {size:,} bytes of samples, holds {held:,}"
        )
    for expected in (size // (SAMPLE_BYTES[subtype] * channels), declared.frames):
        if expected not in (frames, None):
            raise AudioFormatError(f"{path}: declares {expected:,} frames, {frames:,} were found")


def _of_chunks(file: FileIO, chunks: Chunks, length: int) -> Declared:
    header = struct.Struct(chunks.header)
    unknown = (1 << (64 if chunks.header.endswith("Q") else 32)) - 1
    at, frames, bits, long_size = chunks.start, None, 0, None
    for _ in range(MAX_CHUNKS):
        file.seek(min(at, length))  # where the next chunk would be may be more than a seek takes
        name, size = header.unpack(file.read(header.size))
        at += header.size
        if name == chunks.samples:
            known = long_size if size == unknown else size
            if known is not None:
                known -= chunks.skip + (header.size if chunks.sized_with_header else 0)
            return Declared(at + chunks.skip, known, frames, bits)
        if name == chunks.format:
            *said, bits = _unpack_from(file, chunks.bits)
            frames = said[0] if said else None
        elif name == b"ds64":  # RF64 says here what takes more than 32 bits
            (long_size,) = _unpack_from(file, "<8xQ")
        at += size - (header.size if chunks.sized_with_header else 0)
        at += -at % chunks.align
    raise AudioFormatError(f"{file.name}: more than {MAX_CHUNKS:,} chunks before its samples")


def _unpack_from(file: FileIO, layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
