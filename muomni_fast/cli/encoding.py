"""Audio to codes: blocks of many files at once, in bounded memory."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..code_files import CodeInfo
from ..codec import SpeechCodec
from ..reference.audio.files import AudioInfo, audio_blocks, audio_info
from ..reference.audio.mel import pool_frames
from ..reference.audio.mel_blocks import mel_blocks
from ..reference.errors import AudioFormatError
from .existing import codes_there
from .models import Coder
from .places import Pair
from .report import FAULTS, Report, make_parent

BLOCK_SECONDS = 30.0  # of audio analysed at once
# Writes codes (S, Q) to a file, and reads what such a file says of them (or raises CodeFileError).
Write = Callable[[Path, np.ndarray, CodeInfo], None]
Read = Callable[[Path], CodeInfo]


@dataclass
class Clip:
    """A file on its way to codes."""

    pair: Pair
    header: AudioInfo
    length: int = 0  # samples read so far, at the model's rate
    codes: list[Tensor] = field(default_factory=list)


def block_frames(codec: SpeechCodec, seconds: float) -> int:
    """Mel frames of about so many seconds, whole codes of them: where a cut changes no code."""
    per_code = codec.frames_per_code
    return max(1, round(seconds * codec.config.frame_rate / per_code)) * per_code


def rows_of(codec: SpeechCodec, clip: Clip, source: Path) -> Iterator[Tensor]:
    """What the quantizer takes of a file, (S, rvq.n_mels) block by block; counts its samples."""
    mel = codec.config

    def counted() -> Iterator[Tensor]:
        for block in audio_blocks(source, mel.sample_rate):
            clip.length += len(block)
            yield torch.from_numpy(block)

    for frames in mel_blocks(counted(), mel, block_frames(codec, BLOCK_SECONDS)):
        yield pool_frames(frames.T, codec.frames_per_code, codec.pooling)
    if clip.length == 0:
        raise AudioFormatError(f"{source}: too short, no sample is left at {mel.sample_rate} Hz")


class Encoder:
    """Encodes blocks of `batch` clips at once: codes of a row depend on that row alone."""

    def __init__(
        self,
        coder: Coder,
        n_codebooks: int,
        batch: int,
        report: Report,
        overwrite: bool = False,
        beam: int = 1,
    ) -> None:
        self._coder, self._books, self._batch, self._report = coder, n_codebooks, batch, report
        self._overwrite, self._beam = overwrite, beam
        self._of_all = CodeInfo.of(coder.codec, 1, n_codebooks)
        self._pending: list[tuple[Clip, Tensor]] = []
        self._read: list[Clip] = []  # whose last block is pending, or before

    def run(self, pairs: Sequence[Pair], write: Write, read: Read) -> None:
        """Encode files; what is there already is skipped, what cannot be read is reported."""
        for pair in pairs:
            clip = self._begun(pair, read)
            if clip is None:
                continue
            try:
                for rows in rows_of(self._coder.codec, clip, pair.source):
                    self._pending.append((clip, rows))
                    if len(self._pending) >= self._batch:
                        self._flush(write)
            except FAULTS as error:
                self._pending = [entry for entry in self._pending if entry[0] is not clip]
                self._report.failed(pair, error)
                continue
            self._read.append(clip)
        self._flush(write)
        if self._beam > 1 and any(file["status"] == "skipped" for file in self._report.files):
            self._report.note(
                "files of codes do not say with which --beam they were made; --overwrite makes "
                "those anew that were there"
            )

    def _begun(self, pair: Pair, read: Read) -> Clip | None:
        """A clip whose header is sound and whose codes are not there yet."""
        there = None
        try:
            header = audio_info(pair.source, streamed=True)
            make_parent(pair.target)
            if not self._overwrite:
                there = codes_there(
                    pair.target, read, lambda info: self._info(Clip(pair, header, info.length))
                )
        except FAULTS as error:
            self._report.failed(pair, error)
            return None
        if there is not None:
            self._report.skipped(pair, there.seconds)
            return None
        return Clip(pair, header)

    def _info(self, clip: Clip) -> CodeInfo:
        """What is kept of a clip beside its codes."""
        header = clip.header
        return dataclasses.replace(
            self._of_all,
            length=clip.length,
            source_rate=header.sample_rate,
            source_frames=header.frames,
        )

    @torch.no_grad()
    def _flush(self, write: Write) -> None:
        """Encode what is pending; write the clips that are complete."""
        if self._pending:
            codec = self._coder.codec
            device = codec.rvq.codebook_weights()[0].device
            rows = torch.cat([rows for _, rows in self._pending]).to(device)
            codes = codec.rvq.encode(rows, n_codebooks=self._books, beam=self._beam).cpu()
            sizes = [len(rows) for _, rows in self._pending]
            per_second = codec.config.frame_rate / codec.frames_per_code
            for (clip, _), part in zip(self._pending, codes.split(sizes), strict=True):
                clip.codes.append(part)
            self._pending = []
            self._report.worked(len(rows) / per_second)
        for clip in self._read:
            info = self._info(clip)
            replaced = clip.pair.target.exists()
            try:
                write(clip.pair.target, torch.cat(clip.codes).numpy(), info)
                self._report.done(clip.pair, info.seconds, replaced)
            except FAULTS as error:
                self._report.failed(clip.pair, error)
        self._read = []
