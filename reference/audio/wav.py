"""WAV files of 16 bits, mono, written piece by piece and whole or not at all."""

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..atomic import written_atomically
from ..errors import AudioFormatError
from ..reading import open_regular

HEAD = 1 << 12  # bytes in which a comment of ours ends
MOST_BYTES = (1 << 32) - (1 << 16)  # what a WAV file's sizes can say, with room for its header


class WavWriter:
    """Takes audio in pieces; made by `wav_writer`.

    Attributes:
        samples: written so far.
        peak: of them, 1 being full scale.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.samples = 0
        self.peak = 0.0
        self._file, self._path, self._start = file, path, file.tell()

    def write(self, audio: np.ndarray) -> None:
        """Append (n,) samples; those beyond full scale are clipped.

        Raises:
            AudioFormatError: they hold NaN or infinite samples, or the file would be too large.
        """
        if not np.isfinite(audio).all():
            raise AudioFormatError(
                f"audio: refusing to write NaN or infinite samples to {self._path}"
            )
        self.samples += len(audio)
        self.peak = max(self.peak, float(np.abs(audio).max(initial=0)))
        if 2 * self.samples > MOST_BYTES:
            raise AudioFormatError(f"{self._path}: {self.samples:,} samples are too many for WAV")
        self._file.write(np.rint(np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes())

    def cut(self, samples: int) -> None:
        """Keep the first `samples` only, of those written."""
        self.samples = min(samples, self.samples)
        self._file.seek(self._start + 2 * self.samples)
        self._file.truncate()


@contextlib.contextmanager
def wav_writer(path: str | Path, sample_rate: int, comment: str = "") -> Iterator[WavWriter]:
    """A WAV file that is there, whole, once the block ends well, and as before if it does not.

    Args:
        path: of the file.
        sample_rate: Hz.
        comment: kept in the header, as libsndfile does.

    Raises:
        CheckpointError: the file cannot be written.
    """
    path, note = Path(path), b""
    if comment:
        text = comment.encode("ascii") + b"\0"
        text += b"\0" * (len(text) % 2)
        note = b"LIST" + struct.pack("<I", len(text) + 12) + b"INFOICMT"
        note += struct.pack("<I", len(text)) + text
    with written_atomically(path, "audio") as file:
        file.write(bytes(44 + len(note)))
        writer = WavWriter(file, path)
        yield writer
        size = 2 * writer.samples
        file.seek(0)
        file.write(b"RIFF" + struct.pack("<I", 36 + len(note) + size) + b"WAVEfmt ")
        file.write(struct.pack("<IHHIIHH", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16))
        file.write(note + b"data" + struct.pack("<I", size))


def wav_comment(path: str | Path) -> tuple[str, bool]:
    """The comment of a file that `wav_writer` wrote, and whether the file is whole.

    Args:
        path: of any file.

    Returns:
        "" and False where it is no such file.

    Raises:
        CheckpointError: it cannot be read.
    """
    with open_regular(path) as (file, size):
        head = file.read(HEAD)
    if head[:4] != b"RIFF" or head[8:16] != b"WAVEfmt " or len(head) < 44:
        return "", False
    whole = struct.unpack_from("<I", head, 4)[0] + 8 == size
    length = int.from_bytes(head[52:56], "little")
    note = head[56 : 56 + length]
    if head[36:40] + head[44:52] != b"LISTINFOICMT" or len(note) < length:
        return "", whole
    return note.rstrip(b"\0").decode("ascii", "replace"), whole
