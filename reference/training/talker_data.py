"""What the Talker learns from: texts, and the codes of the clips that say them."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..atomic import make_folder
from ..audio.mel import MelConfig, log_mel
from ..checkpoint import load_training_state, save_training_state
from ..errors import AudioFormatError, CheckpointError, DataError
from ..talker.text import text_bytes, text_ids
from . import distributed
from .clips import Clip
from .data import Corpus, Epochs, TrainingData, own_share, read_clip, require_mostly_usable
from .transcripts import transcript

log = logging.getLogger(__name__)

CODES = "codes.pt"  # in the folder where codes are kept
Encoder = Callable[[Tensor], Tensor]  # a log-mel (n_mels, T) to its codes (S, Q)
Items = dict[str, Tensor]  # "text" (B, N), "text_lengths", "codes" (B, S, Q), "lengths", "speakers"


def usable_text(clip: Clip, most: int) -> str | None:
    """A clip's text, or None where there is none, or none of at most `most` bytes."""
    text = transcript(clip)
    if text is None or len(text_bytes(str(clip.path), text)) > most:
        return None
    return text


def collate(texts: Sequence[str], codes: Sequence[Tensor], speakers: Sequence[int]) -> Items:
    """A batch of ragged items, padded on the right."""
    text, text_lengths = text_ids([text_bytes("text", text) for text in texts])
    return {
        "text": text,
        "text_lengths": text_lengths,
        "codes": torch.nn.utils.rnn.pad_sequence([c.long() for c in codes], batch_first=True),
        "lengths": torch.tensor([len(item) for item in codes]),
        "speakers": torch.tensor(speakers),
    }


class TalkerData(TrainingData):
    """Batches of texts and codes by step number: an epoch has each usable clip once.

    Clips without a text, or with one that is too long, are left out, and so are those that cannot
    be read; the log says how many.

    Args:
        corpus: clips, this process's share of them, and where codes are kept.
        encode: makes codes.
        mel: what clips are read for.
        batch_size: items per step over all processes.
        seed: of the order, and of the speakers that are withheld.
        max_text: bytes of a text, at most.
        speaker_dropout: share of items whose speaker is withheld, so that "none" is learned.
        source: digest of what makes codes of mels.

    Attributes:
        clips, texts, codes: of usable clips; codes (S, Q) int32.
        speakers: names of voices, sorted.
        bad: clips that could not be read, by their place in the corpus.

    Raises:
        DataError: no clip has a text; more clips are unusable than may be.
    """

    def __init__(
        self,
        corpus: Corpus,
        encode: Encoder,
        mel: MelConfig,
        batch_size: int,
        seed: int,
        max_text: int,
        speaker_dropout: float,
        source: str,
    ) -> None:
        texts = {i: usable_text(clip, max_text) for i, clip in enumerate(corpus.clips)}
        spoken = {i: text for i, text in texts.items() if text is not None}
        if not spoken:
            raise DataError(f"talker: no clip has a text of 1 to {max_text:,} bytes")
        if len(spoken) < len(texts):
            missing = len(texts) - len(spoken)
            log.info("talker: %d of %d clips have no text to learn", missing, len(texts))
        clips = [corpus.clips[i] for i in spoken]
        codes = kept_codes(corpus, clips, encode, mel, source)
        usable = [i for i, clip in zip(spoken, clips, strict=True) if str(clip.path) in codes]
        self.bad = sorted(spoken.keys() - set(usable))
        self.clips = [corpus.clips[i] for i in usable]
        self.texts = [spoken[i] for i in usable]
        self.codes = [codes[str(clip.path)] for clip in self.clips]
        self.speakers = sorted({clip.speaker for clip in self.clips} - {""})
        self._ids = [self.speakers.index(c.speaker) + 1 if c.speaker else 0 for c in self.clips]
        self.batch_size, self.seed = batch_size, seed
        self.speaker_dropout = speaker_dropout
        self.share = own_share(batch_size, corpus.rank, corpus.world_size)
        self.entries = np.arange(len(self.clips))
        self._epochs = Epochs(self.entries, seed)

    def __getitem__(self, step: int) -> dict[str, Any]:
        positions = [step * self.batch_size + item for item in self.share]
        items = [self._epochs[position] for position in positions]
        # A stream apart from the epochs' (seed, epoch).
        draws = [np.random.default_rng((self.seed, p, 1)).random() for p in positions]
        speakers = [
            self._ids[i] if draw >= self.speaker_dropout else 0
            for i, draw in zip(items, draws, strict=True)
        ]
        batch = collate([self.texts[i] for i in items], [self.codes[i] for i in items], speakers)
        return {**batch, "skipped": self.bad if step == 0 else []}

    def digest(self) -> str:
        """Of the texts, in order."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()


def kept_codes(
    corpus: Corpus, clips: Sequence[Clip], encode: Encoder, mel: MelConfig, source: str
) -> dict[str, Tensor]:
    """Codes (S, Q) int32 of clips by path; without those that cannot be read.

    They are made once: kept beside a fingerprint of what they were made of, and made anew where
    that is another. Several processes make a part each.
    """
    fingerprint = _fingerprint(clips, mel, source)
    path = None if corpus.keep is None else corpus.keep / CODES
    found = distributed.share(_read(path, fingerprint) if path and corpus.rank == 0 else None)
    if found is not None:
        return found
    own = clips[corpus.rank :: corpus.world_size]
    parts = distributed.gather(_make(own, encode, mel))
    codes = {name: item for part in parts for name, item in part.items()}
    if path is not None and corpus.rank == 0:
        make_folder(path.parent)
        save_training_state(path, {"fingerprint": fingerprint, "codes": codes})
    return codes


def _read(path: Path, fingerprint: str) -> dict[str, Tensor] | None:
    if not path.exists():
        return None
    try:
        kept = load_training_state(path)
    except CheckpointError as error:
        log.warning("codes are made anew: %s", error)
        return None
    return kept["codes"] if kept.get("fingerprint") == fingerprint else None


def _make(clips: Sequence[Clip], encode: Encoder, mel: MelConfig) -> dict[str, Tensor]:
    codes: dict[str, Tensor] = {}
    bad = 0
    for clip in clips:
        if str(clip.path) in codes:
            continue
        try:
            audio = read_clip(clip, mel.sample_rate)
        except AudioFormatError as error:
            bad += 1
            log.warning("left out (%d so far): %s", bad, error)
            require_mostly_usable(bad, clips, "clips", error)
            continue
        codes[str(clip.path)] = encode(log_mel(audio, mel)).to("cpu", torch.int32)
    return codes


def _fingerprint(clips: Sequence[Clip], mel: MelConfig, source: str) -> str:
    """Of all that codes are made of: the quantizer, settings, and each file's size and time."""
    digest = hashlib.sha256(f"{source}\n{mel}\n".encode())
    for clip in clips:
        digest.update(str(clip.path).encode(errors="surrogateescape"))
        try:
            stat = clip.path.stat()
            digest.update(f"\0{stat.st_size} {stat.st_mtime_ns}\n".encode())
        except OSError:  # reported when it is read
            digest.update(b"\0\n")
    return digest.hexdigest()
