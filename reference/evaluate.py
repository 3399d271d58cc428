"""Measure speech that codec and vocoder make: `python reference/evaluate.py [RUN | CHECKPOINTS]`.

Prints one table, a row for each way that the models allow (original; Griffin-Lim and HiFi-GAN from
the true mel; codec + each; the Talker + each), and writes it as JSON. Of a run the quantizer alone
is measured too; with `--against faiss`, beside faiss's residual quantizer of the same size (greedy
encoding), fitted on the training frames of the same split. What is measured, and by what, is in
`evaluation/`.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

try:
    from muomni_fast.reference.evaluation.evaluate import Request, run
    from muomni_fast.reference.evaluation.metrics import METRICS
except ModuleNotFoundError as error:
    if error.name != "muomni_fast":
        raise
    raise SystemExit(
        'muomni_fast is not installed; run: pip install -c constraints.txt -e ".[evaluate]"'
    ) from error

from muomni_fast.reference.errors import CheckpointError, DataError
from muomni_fast.reference.packages import MissingPackageError


def parse_arguments(argv: Sequence[str] | None = None, prog: str | None = None) -> Request:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        metavar="RUN_OR_CHECKPOINTS",
        help="a run folder (default: the latest under runs/), or rvq.json, vocoder.json and/or "
        "talker.json",
    )
    add("--data", help="folder of audio, or CSV manifest (default: the run's)")
    add(
        "--hifigan",
        nargs=2,
        metavar=("CONFIG", "CHECKPOINT"),
        help="a published generator's two files, in place of a vocoder.json",
    )
    add(
        "--metrics", nargs="*", choices=list(METRICS), help="only these (default: all; may be none)"
    )
    add("--speakers", nargs="+", default=[], metavar="NAME", help="only clips of these speakers")
    add("--limit", type=int, help="at most so many clips, evenly spaced")
    add(
        "--codebooks",
        nargs="+",
        type=int,
        default=[],
        metavar="K",
        help="a row more for each: through the first K codebooks and Griffin-Lim",
    )
    add("--against", choices=["faiss"], help="a peer to fit on the run's training frames")
    add("--out", help="the JSON (default: evaluation.json, in the run's folder or here)")
    return Request(**vars(parser.parse_args(argv)))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command line's entry, by the name of `prog`; returns its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    request = parse_arguments(argv, prog)
    try:
        text, path = run(request)
    except (CheckpointError, DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except MissingPackageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{text}\n\nwritten: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
