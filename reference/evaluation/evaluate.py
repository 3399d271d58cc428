"""One evaluation, from what is asked for to what was found."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import load_model
from ..packages import require_packages
from ..training.data import read_held_out
from ..training.evaluation import evaluate as evaluate_quantizer
from ..training.run import SHIPPED_SPEECH
from .measure import measure
from .metrics import METRICS, load_metrics
from .refused import RATE
from .rows import rows_of
from .subject import Subject, clips_of, open_subject
from .table import Result, as_text, write_json

OUT = "evaluation.json"
WORDS = "word_errors"


@dataclasses.dataclass(frozen=True)
class Request:
    """What to evaluate, as `evaluate.py --help` describes it; None is what nobody said."""

    models: Sequence[str] = ()
    data: str | None = None
    hifigan: Sequence[str] | None = None
    metrics: Sequence[str] | None = None
    speakers: Sequence[str] = ()
    limit: int | None = None
    codebooks: Sequence[int] = ()
    against: str | None = None
    out: str | None = None


def run(request: Request) -> tuple[str, Path]:
    """Evaluate, and write the JSON; returns the text to print and the JSON's path.

    Raises:
        CheckpointError: models cannot be read, do not fit, or the JSON cannot be written.
        DataError: clips, or their words, cannot be had.
        ValueError: an option does not fit; names it.
        MissingPackageError: what all evaluation needs is not installed.
    """
    require_packages("evaluation", "evaluate")
    subject = open_subject(request.models, request.hifigan)
    if request.against and (subject.folder is None or "rvq" not in subject.files):
        raise ValueError(
            f"--against {request.against}: expected a run folder with a quantizer, which says on "
            "what it was trained"
        )
    rows = rows_of(subject, request.codebooks)
    measures, left_out = load_metrics(METRICS if request.metrics is None else request.metrics)
    source, chosen = clips_of(subject, request.data, request.speakers, request.limit)
    if source.resolve() == SHIPPED_SPEECH and WORDS in measures:
        del measures[WORDS]
        left_out[WORDS] = "the shipped speech is made by rule, which the recogniser cannot follow"
    quantizer = {}
    if subject.folder is not None and "rvq" in subject.files:
        quantizer = evaluate_quantizer(subject.folder, request.data, request.against)
    clips = read_held_out(chosen, subject.mel) if measures else []
    table = measure(rows, clips, subject.mel.sample_rate, measures) if measures else {}
    settings = {
        "models": {kind: str(path) for kind, path in subject.files.items()},
        "data": str(source),
        "clips": "all" if subject.folder is None else "held out",
        "speakers": list(request.speakers),
        "limit": request.limit,
        "codebooks": list(request.codebooks),
        "against": request.against,
        "sample_rate": RATE,
        "mel": dataclasses.asdict(subject.mel),
        "codec": codec_settings(subject),
    }
    counts = {"chosen": len(chosen), "measured": len(clips)}
    result = Result(settings, counts, table, left_out, quantizer)
    path = Path(request.out) if request.out else Path(OUT)
    if not request.out and subject.folder is not None:
        path = subject.folder.path / OUT
    write_json(path, result)
    return as_text(result), path


def codec_settings(subject: Subject) -> dict[str, Any]:
    """What a quantizer's checkpoint says of itself, and the bits it spends; {} where there is
    none."""
    if "rvq" not in subject.files:
        return {}
    saved, codec = load_model(subject.files["rvq"], "rvq"), subject.codecs["Griffin-Lim"]
    codes_per_second = codec.config.frame_rate / codec.frames_per_code
    bits = codec.rvq.n_codebooks * math.log2(codec.rvq.codebook_size)
    return {**saved.config, **saved.extra, "bits_per_second": codes_per_second * bits}
