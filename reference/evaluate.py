"""Measure a trained quantizer on held-out speech: `python reference/evaluate.py [RUN]`.

With `--against faiss`, faiss's residual quantizer of the same size (greedy encoding) is fitted on
the training frames of the same split and measured on the same held-out frames, in the same process.
"""

import argparse
import sys
from collections.abc import Sequence

from muomni_fast.reference.errors import CheckpointError, DataError
from muomni_fast.reference.training.evaluation import evaluate
from muomni_fast.reference.training.run_folder import RunFolder


def main(argv: Sequence[str] | None = None) -> int:
    """The command line's entry; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", nargs="?", help="run folder (default: the latest under runs/)")
    parser.add_argument("--data", help="other data than the run's")
    parser.add_argument("--against", choices=["faiss"], help="a peer to fit on the same frames")
    options = parser.parse_args(argv)
    try:
        figures = evaluate(RunFolder.existing(options.run), options.data, options.against)
    except (CheckpointError, DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, row in figures.items():
        print(f"{name:<14}" + "  ".join(f"{key} {value:.4f}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
