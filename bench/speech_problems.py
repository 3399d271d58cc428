"""Quantizers of real shapes whose codebooks are k-means of speech, and held-out rows for them.

Codebooks are made of log-mels of training clips, codebook after codebook, rows are of clips held
out, of the recordings in MUOMNI_SPEECH_DIR or, without it, of the shipped speech. Where a codebook
is wider than a frame's 128 mels, a row is that many frames side by side (2 for 256 dimensions, 8
for 1,024), from every frame on. A projection is the frames' principal components.
"""

import copy
import dataclasses
import functools
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from muomni_fast import reference
from muomni_fast.reference.audio.files import read_audio
from muomni_fast.reference.audio.mel import MelConfig, log_mel
from muomni_fast.reference.training import codebook_health
from muomni_fast.reference.training.clips import Clip, find_clips, split_clips
from muomni_fast.reference.training.run import SHIPPED_SPEECH

LLOYD_STEPS = 4
TRAINING_ROWS, HELD_OUT_ROWS = 16_384, 8_192
MEL = MelConfig()


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a quantizer; `n_mels` of its projection, None without one."""

    n_codebooks: int
    codebook_size: int
    codebook_dim: int
    n_mels: int | None = None

    @property
    def config(self) -> dict[str, int | bool]:
        """Arguments of `RVQ`."""
        sizes = dataclasses.asdict(self)
        return sizes | dict(
            n_mels=self.n_mels or self.codebook_dim, projections=self.n_mels is not None
        )


DEFAULT = Sizes(2, 128, 64, 128)
ENCODEC = Sizes(8, 1024, 128)
MIMI = Sizes(7, 2048, 256)
XCODEC = Sizes(8, 1024, 1024)
Data = tuple[reference.RVQ, Tensor]  # a quantizer, rows


def speech() -> tuple[str, Path]:
    """What the speech is, and its folder."""
    if "MUOMNI_SPEECH_DIR" in os.environ:
        return "recordings", Path(os.environ["MUOMNI_SPEECH_DIR"])
    return "shipped speech", SHIPPED_SPEECH


@functools.cache
def problem(sizes: Sizes, training: int = TRAINING_ROWS, held_out: int = HELD_OUT_ROWS) -> Data:
    """A quantizer with k-means codebooks, and rows (held_out, n_mels) it was not made of.

    Where the speech is short, held-out rows come again and again.
    """
    rvq = reference.RVQ(**sizes.config).eval()
    wide = rvq.n_mels // MEL.n_mels
    train, held, _ = split_clips(find_clips(speech()[1]))
    mel, rows = (_rows(clips, wide, n) for clips, n in ((train, training), (held, held_out)))
    with patch.multiple(codebook_health, KMEANS_STEPS=LLOYD_STEPS, nearest_code=_lowest_score):
        codebook_health.start_from_data(rvq, mel, torch.Generator().manual_seed(0))
    return rvq.requires_grad_(False), rows.repeat(-(-held_out // len(rows)), 1)[:held_out]


def _rows(clips: list[Clip], wide: int, most: int) -> Tensor:
    """Rows of `wide` frames side by side, from every frame of the clips on, in random order."""
    found = []
    for mel in _mels(clips):
        found.append(mel.unfold(0, wide, 1).transpose(1, 2).flatten(1))  # (T, wide n_mels)
        if sum(map(len, found)) >= most:
            break
    rows = torch.cat(found)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]]


def _mels(clips: list[Clip]) -> Iterator[Tensor]:
    """Log-mels (T, n_mels) of clips, in random order."""
    for clip in random.Random(0).sample(clips, len(clips)):
        audio, _ = read_audio(clip.path, MEL.sample_rate)
        yield log_mel(torch.from_numpy(audio)[None], MEL)[0].t()


def _lowest_score(x: Tensor, codebook: Tensor) -> Tensor:
    """Nearest codes within rounding, as fast as k-means of this size needs it."""
    return torch.addmm(codebook.square().sum(1) / 2, x, codebook.t(), alpha=-1).argmin(1)


def repeated(data: Data, n_codebooks: int) -> Data:
    """The codebooks again and again."""
    rvq, rows = data
    more = reference.RVQ(**rvq.config | dict(n_codebooks=n_codebooks)).eval()
    for q, weight in enumerate(more.codebook_weights()):
        weight.data.copy_(rvq.codebook_weights()[q % rvq.n_codebooks])
    return more.requires_grad_(False), rows


Change = Callable[[reference.RVQ, Tensor], Data]


def _words(change: Callable[[Tensor], Tensor], first: bool = False) -> Change:
    """All codebooks changed, or only the first."""

    def changed(rvq: reference.RVQ, rows: Tensor) -> Data:
        other = copy.deepcopy(rvq)
        for codebook in other.codebook_weights()[: 1 if first else None]:
            codebook.copy_(change(codebook))
        return other, rows

    return changed


def _longer(factor: float) -> Change:
    return _words(lambda words: torch.cat([words[:1] * factor, words[1:]]))


def _moved(offset: float, first: bool) -> Change:
    """Rows moved, and the first codebook, as k-means of such rows would be, or all."""
    change = _words(lambda words: words + offset, first)

    def changed(rvq: reference.RVQ, rows: Tensor) -> Data:
        # A projection's rows are orthonormal: this moves what it gives.
        shift = 1.0 if rvq.proj_in is None else rvq.proj_in.weight.sum(0)
        return change(rvq, rows + offset * shift)

    return changed


def _tiny(rvq: reference.RVQ, rows: Tensor) -> Data:
    return _words(lambda words: 1e-20 * words)(rvq, 1e-20 * rows)


def _broken(rvq: reference.RVQ, rows: Tensor) -> Data:
    rows = rows.clone()
    rows[::2] = torch.nan
    return rvq, rows


# What a search by scores finds hard, made of ordinary codebooks and rows.
AWKWARD: dict[str, Change] = {
    "ordinary": lambda rvq, rows: (rvq, rows),
    "every code twice": _words(lambda words: words[: len(words) // 2].repeat(2, 1)),
    "all codewords zero": _words(torch.zeros_like),
    "half of them zero": _words(lambda w: torch.cat([w[: len(w) // 2], 0 * w[len(w) // 2 :]])),
    "all rows zero": lambda rvq, rows: (rvq, torch.zeros_like(rows)),
    "one codeword x 100": _longer(100),
    "one codeword x 1000": _longer(1000),
    "offset 10": _moved(10, first=True),
    "offset 10, all codebooks": _moved(10, first=False),
    "offset 100": _moved(100, first=True),
    "offset 100, all codebooks": _moved(100, first=False),
    "x 1e-20": _tiny,
    "half of the rows NaN": _broken,
}
