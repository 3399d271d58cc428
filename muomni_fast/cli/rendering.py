"""Mels to sound: short clips in batches of like lengths, long ones piece by piece."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..reference.audio.wav import wav_writer
from ..reference.errors import AudioFormatError
from .existing import DIGITS, comment_of, entry, is_sound_there
from .models import Voice
from .places import Pair
from .report import FAULTS, Report, make_parent

STREAM_SECONDS = 20.0  # HiFi-GAN: longer clips are streamed, in pieces of so much
GRIFFIN_LIM_SECONDS = 120.0  # it sees whole clips, up to so long
FADE_FRAMES = 16  # by which pieces of longer ones overlap


@dataclass
class Sound:
    """A file to write sound to, and where its mel comes from.

    Attributes:
        pair: what is read, and what is written.
        seconds: about how long, before it is read.
        mels: gives the mel, (n_mels, t) each, about so many seconds of it at a time, and sets
            `length`.
        made_of: what the sound depends on, besides the vocoder, by name: compared to know what is
            there.
        length: samples to keep.
    """

    pair: Pair
    seconds: float
    mels: Callable[["Sound", float], Iterator[Tensor]]
    made_of: dict[str, str]
    length: int = 0


def digest_of_file(path: Path) -> str:
    """By what a file's content is known in a comment."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]
    except OSError as error:
        raise AudioFormatError(f"{path}: {error.strerror}") from error


class Renderer:
    """Writes sounds as WAV files, each with a comment that says what it was made of."""

    def __init__(self, voice: Voice, batch: int, report: Report, overwrite: bool = False) -> None:
        self._voice, self._batch, self._report = voice, batch, report
        self._overwrite = overwrite
        self._limit = STREAM_SECONDS if voice.streams else GRIFFIN_LIM_SECONDS

    def run(self, sounds: Sequence[Sound]) -> None:
        """Write those that are not there; the longest first, so that batches pad little."""
        todo = [sound for sound in sounds if self._overwrite or self._is_free(sound)]
        short = [sound for sound in todo if sound.seconds <= self._limit]
        short.sort(key=lambda sound: -sound.seconds)
        for start in range(0, len(short), self._batch):
            self._together(short[start : start + self._batch])
        for sound in todo:
            if sound.seconds > self._limit:
                self._by_pieces(sound)

    def _made_of(self, sound: Sound) -> dict[str, str]:
        """All that a file's sound depends on."""
        dtype = str(self._voice.dtype).removeprefix("torch.")
        return sound.made_of | {"vocoder": self._voice.digest, "dtype": entry(dtype)}

    def _is_free(self, sound: Sound) -> bool:
        """Whether the file is to be written; says what becomes of it otherwise."""
        try:
            if not is_sound_there(sound.pair.target, self._made_of(sound)):
                return True
        except FAULTS as error:
            self._report.failed(sound.pair, error)
        else:
            self._report.skipped(sound.pair, sound.seconds)
        return False

    def _together(self, sounds: Sequence[Sound]) -> None:
        """Whole clips in one batch."""
        read = []
        for sound in sounds:
            try:
                read.append((sound, torch.cat([*sound.mels(sound, self._limit)], dim=1)))
            except FAULTS as error:
                self._report.failed(sound.pair, error)
        if not read:
            return
        frames = [mel.shape[1] for _, mel in read]
        batch = read[0][1].new_zeros(len(read), self._voice.mel.n_mels, max(frames))
        for row, (_, mel) in zip(batch, read, strict=True):
            row[:, : mel.shape[1]] = mel
        lengths = frames if len(read) > 1 else None
        audio = self._audio(batch, lengths)
        for row, (sound, mel) in zip(audio, read, strict=True):
            self._write(sound, [row[: mel.shape[1] * self._voice.mel.hop_length]])

    def _by_pieces(self, sound: Sound) -> None:
        """A clip too long to be generated at once."""
        mels = (mel[None] for mel in sound.mels(sound, self._limit))
        if self._voice.streams:
            cast = (mel.to(self._voice.dtype) for mel in mels)
            pieces = self._voice.vocoder.stream(cast)
        else:
            self._report.note(
                f"{sound.pair.source}: Griffin-Lim cannot stream: pieces of "
                f"{self._limit:.0f} s, faded into each other, instead of the whole"
            )
            pieces = faded(self._audio, mels, self._voice.mel.hop_length)
        self._write(sound, (piece[0].float() for piece in pieces))

    @torch.no_grad()
    def _audio(self, mel: Tensor, lengths: list[int] | None = None) -> Tensor:
        """(B, n_mels, T) -> (B, T * hop_length) float32."""
        return self._voice.vocoder(mel.to(self._voice.dtype), lengths).float()

    def _write(self, sound: Sound, pieces: Iterable[Tensor]) -> None:
        """Write pieces of audio (n,), cut to the sound's length, which is known after the last."""
        mel = self._voice.mel
        try:
            make_parent(sound.pair.target)
            replaced = sound.pair.target.exists()
            comment = comment_of(self._made_of(sound))
            with wav_writer(sound.pair.target, mel.sample_rate, comment) as file:
                for piece in pieces:
                    file.write(piece.cpu().numpy())
                    self._report.worked(len(piece) / mel.sample_rate)
                file.cut(sound.length)
            self._report.done(sound.pair, file.samples / mel.sample_rate, replaced, file.peak)
        except FAULTS as error:
            self._report.failed(sound.pair, error)


def faded(
    generate: Callable[[Tensor], Tensor], mels: Iterable[Tensor], hop_length: int
) -> Iterator[Tensor]:
    """Audio of a mel in pieces, each generated with FADE_FRAMES of the one before, and faded in
    over them: what a vocoder that must see a whole clip can do with one that is too long.

    Args:
        generate: (B, n_mels, T) -> (B, T * hop_length).
        mels: (B, n_mels, t) each.
        hop_length: samples of a frame.

    Yields:
        (B, n), as many samples in all as of the whole mel.
    """
    before: Tensor | None = None  # the last frames of the piece before
    end: Tensor | None = None  # their audio, which is not given away yet
    for mel in mels:
        whole = mel if before is None else torch.cat([before, mel], dim=2)
        audio = generate(whole)
        if end is not None:
            size = end.shape[1]
            rising = (torch.arange(size, device=audio.device) + 0.5) / size
            audio[:, :size] = end * (1 - rising) + audio[:, :size] * rising
        overlap = min(FADE_FRAMES, whole.shape[2])
        before = whole[:, :, whole.shape[2] - overlap :]
        cut = audio.shape[1] - overlap * hop_length
        end = audio[:, cut:]
        if cut:
            yield audio[:, :cut]
    if end is not None:
        yield end
