"""The measuring: every row of every clip, by every metric."""

import collections
import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..audio.files import resample
from ..training.data import HeldOut, read_clip
from ..training.transcripts import transcript
from .metrics import METRICS, Figure, Measure, Sample
from .refused import RATE, Refused
from .rows import Row

ENDS_APART = 16  # samples, a millisecond: what resampling twice may round


@dataclasses.dataclass
class Column:
    """Figures of one row by one metric.

    Attributes:
        figures: of the clips it judged.
        refused: how many clips it did not judge, by reason.
    """

    figures: list[Figure] = dataclasses.field(default_factory=list)
    refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def mean(self) -> float | None:
        """The mean by weight; None where no clip was judged."""
        weight = sum(figure.weight for figure in self.figures)
        return sum(f.value * f.weight for f in self.figures) / weight if weight else None

    def as_json(self) -> dict[str, Any]:
        return {
            "mean": self.mean(),
            "clips": len(self.figures),
            "refused": dict(sorted(self.refused.items())),
        }


Table = dict[str, dict[str, Column]]  # by row and metric


@torch.no_grad()
def sample_of(row: Row, held: HeldOut, original: np.ndarray, sample_rate: int) -> Sample:
    """What a row makes of a clip, at 16 kHz and clipped to full scale, as a sound file clips it.

    Args:
        row: how it is made.
        held: the clip at the models' rate.
        original: (L,) the clip at 16 kHz.
        sample_rate: Hz, the models' rate.

    Raises:
        Refused: the audio holds NaN or infinite samples.
        ValueError: a row that follows the original has another length.
    """
    if row.make is None:
        made = original
    else:
        made = row.make(held).float().numpy()
        if sample_rate != RATE:
            made = resample(made, sample_rate, RATE)
    if not np.isfinite(made).all():
        raise Refused("NaN or infinite samples")
    if row.follows_original:
        if not -ENDS_APART <= len(made) - len(original) <= ENDS_APART:
            raise ValueError(
                f"{row.name}: {held.clip.path}: expected {len(original):,} samples at {RATE} Hz, "
                f"got {len(made):,}"
            )
        length = min(len(made), len(original))
        made, original = made[:length], original[:length]
    return Sample(np.clip(original, -1, 1), np.clip(made, -1, 1), transcript(held.clip) or "")


def measure(
    rows: Sequence[Row],
    clips: Sequence[HeldOut],
    sample_rate: int,
    measures: Mapping[str, Measure],
) -> Table:
    """Figures of every row by every metric that fits it.

    A metric that compares does not fit rows that do not follow the original; one that reads does
    not fit clips without text. A clip that a metric refuses is counted with the reason.

    Args:
        rows: to measure.
        clips: at the models' rate.
        sample_rate: Hz, that rate.
        measures: by metric.
    """
    from tqdm import tqdm

    table: Table = {row.name: {name: Column() for name in measures} for row in rows}
    for held in tqdm(clips, desc="clips", unit="clip", disable=None):
        original = read_clip(held.clip, RATE).numpy()
        for row in rows:
            fitting = {n: judge for n, judge in measures.items() if _fits(n, row, held)}
            try:
                sample = sample_of(row, held, original, sample_rate)
            except Refused as reason:
                for name in fitting:
                    table[row.name][name].refused[str(reason)] += 1
                continue
            for name, judge in fitting.items():
                _add(table[row.name][name], judge, sample)
    return table


def _fits(name: str, row: Row, held: HeldOut) -> bool:
    metric = METRICS[name]
    if metric.compares and not row.follows_original:
        return False
    return not metric.reads or transcript(held.clip) is not None


def _add(column: Column, judge: Measure, sample: Sample) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of packages, about themselves
            warnings.simplefilter("ignore", DeprecationWarning)
            figure = judge(sample)
        if not math.isfinite(figure.value):
            raise Refused("no finite figure")
    except Refused as reason:
        column.refused[str(reason)] += 1
    else:
        column.figures.append(figure)
