"""The columns of the table: what is measured, what each needs, and which of them can be had."""

import dataclasses
import importlib.metadata
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ..packages import installing
from .judges import dnsmos, pesq_wb, speaker_similarity, stoi
from .pitch import log_f0_rmse, voicing_error
from .spectral import mel_cepstral_distortion, mel_l1, mel_mse
from .words import word_errors

EVALUATE, PESQ = installing("evaluate"), installing("pesq")
RESEMBLYZER = "pip install --no-deps resemblyzer webrtcvad-wheels"


class Sample(NamedTuple):
    """What a metric is given: original and made audio (L,) at 16 kHz, and the words, "" if
    unknown."""

    original: np.ndarray
    made: np.ndarray
    text: str


class Figure(NamedTuple):
    """A figure of one clip, and by how much it counts in the mean."""

    value: float
    weight: float = 1.0


Measure = Callable[[Sample], Figure]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A column.

    Attributes:
        name: in the JSON and for `--metrics`.
        heading: in the table, with the unit.
        load: makes what measures a clip; raises ImportError where a package is missing.
        install: the command that installs what it needs.
        packages: distributions it uses, whose versions are written down.
        compares: whether it needs the original, spoken at the same times.
        reads: whether it needs the words.
        scale, digits: how the table writes it.
    """

    name: str
    heading: str
    load: Callable[[], Measure]
    install: str = ""
    packages: tuple[str, ...] = ()
    compares: bool = False
    reads: bool = False
    scale: float = 1.0
    digits: int = 3


def _comparing(load: Callable[[], Callable[[np.ndarray, np.ndarray], float]]) -> Any:
    def loaded() -> Measure:
        compare = load()
        return lambda sample: Figure(compare(sample.original, sample.made))

    return loaded


def _quality() -> Measure:
    judge = dnsmos()
    return lambda sample: Figure(judge(sample.made))


def _words() -> Measure:
    count = word_errors()

    def measure(sample: Sample) -> Figure:
        errors, words = count(sample.made, sample.text)
        return Figure(errors / words, words)

    return measure


def _column(name: str, heading: str, compare: Any, **options: Any) -> Metric:
    return Metric(name, heading, _comparing(compare), compares=True, **options)


METRICS = {
    metric.name: metric
    for metric in (
        _column("mel_l1", "mel L1", lambda: mel_l1),
        _column("mel_mse", "mel MSE", lambda: mel_mse),
        _column("mcd", "MCD dB", lambda: mel_cepstral_distortion, digits=2),
        _column("log_f0_rmse", "ln F0", lambda: log_f0_rmse),
        _column("voicing_error", "voicing %", lambda: voicing_error, scale=100, digits=1),
        _column("stoi", "STOI", stoi, install=EVALUATE, packages=("pystoi",)),
        _column("pesq", "PESQ", pesq_wb, install=PESQ, packages=("pesq",), digits=2),
        Metric(
            "dnsmos",
            "DNSMOS",
            _quality,
            install=EVALUATE,
            packages=("speechmos", "onnxruntime", "librosa"),
            digits=2,
        ),
        Metric(
            "word_errors",
            "words %",
            _words,
            install=EVALUATE,
            packages=("pocketsphinx",),
            reads=True,
            scale=100,
            digits=1,
        ),
        _column(
            "speaker",
            "speaker",
            speaker_similarity,
            install=RESEMBLYZER,
            packages=("resemblyzer", "librosa"),
        ),
    )
}


def load_metrics(names: Iterable[str]) -> tuple[dict[str, Measure], dict[str, str]]:
    """What measures, by name, and why the others do not: a package is missing.

    Raises:
        ValueError: there is no metric of a name.
    """
    measures, left_out = {}, {}
    for name in names:
        if name not in METRICS:
            raise ValueError(f"metrics: expected some of {', '.join(METRICS)}, got {name!r}")
        try:
            measures[name] = METRICS[name].load()
        except ImportError as error:
            left_out[name] = f"{error} ({METRICS[name].install})"
    return measures, left_out


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that metrics of these names use."""
    packages = {package for name in names for package in METRICS[name].packages}
    return {package: importlib.metadata.version(package) for package in sorted(packages)}
