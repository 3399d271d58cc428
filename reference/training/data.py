"""Training batches that are a function of the step, and whole clips to validate on.

The clips of step s are those at positions s * batch_size ... of an endless sequence of shuffled
epochs, and every crop is drawn from (seed, position). So the data of a step depends on nothing that
came before: resuming needs no saved position, and several processes simply take their share.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..audio.files import audio_info, read_audio
from ..audio.mel import MelConfig, log_mel
from ..errors import AudioFormatError, DataError
from .clips import Clip

log = logging.getLogger(__name__)

HELD_OUT_SECONDS = 1800.0  # of audio that validation looks at, at most
SILENT_PEAK = 1e-4  # -80 dB full scale
MAX_SKIPPED = 0.5  # share of clips that may be unusable


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What training data is made of.

    Attributes:
        clips: to train on.
        rank, world_size: this process's share of each batch: the rank-th of equal parts.
        cache_bytes: decoded clips that may be kept in memory.
        keep: a folder for what is computed once from clips; None keeps nothing.
    """

    clips: Sequence[Clip]
    rank: int = 0
    world_size: int = 1
    cache_bytes: int = 1 << 30
    keep: Path | None = None


class HeldOut(NamedTuple):
    """A held-out clip, its audio (L,) and log-mel (n_mels, T)."""

    clip: Clip
    audio: Tensor
    mel: Tensor


class TrainingData(Dataset[Any]):
    """Training batches by step number: `data[step]`, a function of seed and step only.

    Attributes:
        entries: what an epoch holds; only its length is asked for.
    """

    entries: Sized


class Epochs:
    """An endless sequence of shuffled epochs of the same entries, a function of the seed."""

    def __init__(self, entries: np.ndarray, seed: int) -> None:
        self.entries, self.seed = entries, seed
        self._order: tuple[int, np.ndarray] = (-1, entries)

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, len(self.entries))
        if self._order[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.entries)
            self._order = (epoch, order)
        return int(self._order[1][place])


def own_share(batch_size: int, rank: int, world_size: int) -> range:
    """Which items of each batch are this process's: the rank-th of equal parts.

    Raises:
        ValueError: a batch has no equal parts.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(
            f"batch_size: expected a multiple of {world_size} processes, got {batch_size}"
        )
    return range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


def read_clip(clip: Clip, sample_rate: int) -> Tensor:
    """Audio of a clip at `sample_rate` Hz, (L,) float32.

    Raises:
        AudioFormatError: it cannot be read, or is silent.
    """
    samples, _ = read_audio(clip.path, sample_rate)
    if len(samples) == 0:
        raise AudioFormatError(f"{clip.path}: too short, no sample is left at {sample_rate} Hz")
    peak = float(np.abs(samples).max())
    if peak < SILENT_PEAK:
        raise AudioFormatError(f"{clip.path}: silent, peak {peak:.1e}")
    return torch.from_numpy(samples)


def read_held_out(clips: Sequence[Clip], mel: MelConfig) -> list[HeldOut]:
    """Clips with audio and log-mel, up to HELD_OUT_SECONDS of audio in all.

    Unusable clips are logged, counted and left out.

    Raises:
        DataError: no clips, or more than MAX_SKIPPED of them are unusable.
    """
    if not clips:
        raise DataError("no held-out clips")
    held: list[HeldOut] = []
    seconds, bad = 0.0, 0
    for clip in clips:
        if seconds > HELD_OUT_SECONDS:
            log.info("held-out figures use the first %d of %d clips", len(held), len(clips))
            break
        try:
            audio = read_clip(clip, mel.sample_rate)
        except AudioFormatError as error:
            bad += 1
            log.warning("left out of the held-out clips (%d so far): %s", bad, error)
            require_mostly_usable(bad, clips, "held-out clips", error)
            continue
        held.append(HeldOut(clip, audio, log_mel(audio, mel)))
        seconds += len(audio) / mel.sample_rate
    return held


def require_mostly_usable(
    bad: int, clips: Sequence[Clip], what: str, last: AudioFormatError
) -> None:
    """Raise DataError if more than MAX_SKIPPED of the clips are unusable."""
    if bad > MAX_SKIPPED * len(clips):
        raise DataError(f"{bad} of {len(clips)} {what} are unusable; last: {last}") from last


class SpeechDataset(TrainingData):
    """Training batches by step number.

    `dataset[step]` has "audio" (b, segment_samples) and "mel" (b, n_mels, segment_frames), float32:
    aligned crops of clips and of their log-mels, so that a crop's edge frames see real audio; and
    their "positions" in the sequence. A clip shorter than a segment is zero-padded; "frames" has
    how many of each crop's are not padding. A clip that cannot be read, or is silent, is logged,
    listed by its index in "skipped", and replaced by the next position's.

    Args:
        clips: to draw from.
        mel: settings; other sample rates are resampled.
        segment_samples: length of a crop, a multiple of the hop.
        batch_size: clips per step over all processes.
        seed: of order and crops.
        rank, world_size: this process's share: the rank-th of equal parts of each batch.
        by_length: an epoch holds as many crops of a clip as segments fit in, so that all speech
            counts alike; otherwise one of each clip. Reads every header first.
        cache_bytes: decoded clips kept in memory, the oldest dropped first.
        through: what "mel" is cut from, of a clip's whole log-mel (n_mels, T), so that it may look
            beyond a crop; None is the log-mel itself.

    Raises:
        DataError: no clips; or, while reading, more than MAX_SKIPPED of them are unusable.
        ValueError: sizes do not divide.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        mel: MelConfig,
        segment_samples: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        by_length: bool = False,
        cache_bytes: int = 1 << 30,
        through: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not clips:
            raise DataError("no clips to train on")
        if segment_samples < 1 or segment_samples % mel.hop_length:
            raise ValueError(
                f"segment_samples: expected a multiple of hop_length {mel.hop_length}, "
                f"got {segment_samples}"
            )
        self.share = own_share(batch_size, rank, world_size)
        self.clips = list(clips)
        self.mel = mel
        self.segment_samples = segment_samples
        self.batch_size = batch_size
        self.seed = seed
        self.cache_bytes = cache_bytes
        self.through = through
        self.bad: set[int] = set()
        counts = [self._segments(clip) if by_length else 1 for clip in self.clips]
        # Clips of one epoch, in order.
        self.entries: np.ndarray = np.repeat(np.arange(len(self.clips)), counts)
        self._cache: dict[int, tuple[Tensor, Tensor, int]] = {}
        self._cached_bytes = 0
        self._epochs = Epochs(self.entries, seed)

    def _segments(self, clip: Clip) -> int:
        try:
            info = audio_info(clip.path)
        except AudioFormatError:
            return 1  # reported, counted and skipped when its turn comes
        samples = info.frames * self.mel.sample_rate / info.sample_rate
        return max(1, round(samples / self.segment_samples))

    def clip_of(self, position: int) -> int:
        """Index of the clip at a position of the endless sequence of shuffled epochs."""
        return self._epochs[position]

    def __getitem__(self, step: int) -> dict[str, Any]:
        bad_before = set(self.bad)
        positions = [step * self.batch_size + item for item in self.share]
        audios, mels, frames = zip(*map(self._crop, positions), strict=True)
        skipped = sorted(self.bad - bad_before)
        return {
            "audio": torch.stack(audios),
            "mel": torch.stack(mels),
            "positions": positions,
            "frames": list(frames),
            "skipped": skipped,
        }

    def _crop(self, position: int) -> tuple[Tensor, Tensor, int]:
        audio, mel, n_frames = self._usable(position)
        frames = self.segment_samples // self.mel.hop_length
        start = 0
        if mel.shape[1] > frames:
            # A stream apart from the epochs' (seed, epoch).
            draw = np.random.default_rng((self.seed, position, 1))
            start = int(draw.integers(mel.shape[1] - frames + 1))
        hop = self.mel.hop_length
        crop = mel[:, start : start + frames]
        return audio[start * hop : (start + frames) * hop], crop, min(frames, n_frames)

    def _usable(self, position: int) -> tuple[Tensor, Tensor, int]:
        while True:
            index = self.clip_of(position)
            if index not in self.bad:
                try:
                    return self._padded(index)
                except AudioFormatError as error:
                    self.bad.add(index)
                    log.warning("skipped (%d so far): %s", len(self.bad), error)
                    require_mostly_usable(len(self.bad), self.clips, "clips", error)
            position += 1

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """A whole clip: audio (T * hop,) zero-padded, at least a segment long, and its log-mel
        (n_mels, T), or what that is `through`.

        Raises:
            AudioFormatError: it cannot be read, or is silent.
        """
        return self._padded(index)[:2]

    def _padded(self, index: int) -> tuple[Tensor, Tensor, int]:
        """What `load` gives, and how many frames are not padding."""
        if index not in self._cache:
            audio = read_clip(self.clips[index], self.mel.sample_rate)
            n_frames = self.mel.n_frames(len(audio))
            length = max(n_frames * self.mel.hop_length, self.segment_samples)
            audio = torch.nn.functional.pad(audio, (0, length - len(audio)))
            mel = log_mel(audio, self.mel)
            entry = (audio, mel if self.through is None else self.through(mel), n_frames)
            self._cache[index] = entry
            self._cached_bytes += sum(t.nbytes for t in entry[:2])
            while self._cached_bytes > self.cache_bytes and len(self._cache) > 1:
                old = self._cache.pop(next(iter(self._cache)))
                self._cached_bytes -= sum(t.nbytes for t in old[:2])
        return self._cache[index]

    def frames(self, limit: int) -> Tensor:
        """Mel frames of usable clips in random order, at most `limit` of them: (N, n_mels)."""
        parts: list[Tensor] = []
        for index in np.random.default_rng(self.seed).permutation(len(self.clips)):
            if sum(len(part) for part in parts) >= limit:
                break
            # Unusable clips are reported, counted and skipped when their turn comes.
            with contextlib.suppress(AudioFormatError):
                _, mel, n_frames = self._padded(int(index))
                parts.append(mel[:, :n_frames].T)
        if not parts:
            raise DataError("no usable clip to start from")
        return torch.cat(parts)[:limit]
