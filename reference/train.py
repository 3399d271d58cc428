"""Train a speech codec: `python reference/train.py`.

Without arguments it trains all stages on the speech in this repository, in a few minutes on two CPU
cores, and reports on held-out clips. `--help` lists the options. Several GPUs:
`torchrun --nproc_per_node=N reference/train.py ...`. What is run is `training/run.py`.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

try:
    from muomni_fast.reference.training.run import Options, run
except ModuleNotFoundError as error:
    if error.name != "muomni_fast":
        raise
    raise SystemExit(
        "muomni_fast is not installed; run `make train`, or: "
        'pip install -c constraints.txt -e ".[train]"'
    ) from error

from muomni_fast.reference.audio.mel import POOLINGS
from muomni_fast.reference.errors import CheckpointError, DataError, TrainingError
from muomni_fast.reference.packages import MissingPackageError
from muomni_fast.reference.training.presets import SHARED
from muomni_fast.reference.training.registry import STAGES


def parse_arguments(argv: Sequence[str] | None = None, prog: str | None = None) -> Options:
    """Read the command line; options left out are None, so that a resumed run can tell."""
    parser = argparse.ArgumentParser(prog, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--preset", choices=list(SHARED), help="what to train (default: quick)")
    add("--data", help="folder of audio, or CSV manifest (default: the shipped speech)")
    add("--split", choices=["auto", "speaker", "clip"], help="what to hold out (default: auto)")
    add("--stage", choices=[*STAGES, "all"], help="which stage (default: all)")
    add("--steps", type=int, help="steps of each stage, instead of the preset's")
    add("--batch-size", type=int, help="items per step over all processes")
    add("--accumulate", type=int, help="micro-batches per step (default: 1)")
    add("--frames-per-code", type=int, help="mel frames that share a code")
    add(
        "--pooling",
        choices=list(POOLINGS),
        help="how: their mean, or side by side (default: the preset's)",
    )
    add(
        "--decoded-mels",
        metavar="RUN_OR_CHECKPOINT",
        help="make audio of mels that were decoded from this finished quantizer's codes",
    )
    add(
        "--init",
        metavar="RUN_OR_CHECKPOINT",
        help="begin with the weights of this finished model, not random ones; needs --stage",
    )
    add("--amp", choices=["none", "bf16", "fp16"], help="autocast precision (default: none)")
    add("--seed", type=int, help="of weights, order and crops (default: 0)")
    add("--backend", choices=["reference", "fast"], help="whose modules (default: reference)")
    add("--device", help="torch device (default: cuda if there is one, else cpu)")
    add("--workers", type=int, help="processes reading data ahead (default: 0 on a CPU, else 4)")
    add("--out", help="run folder (default: runs/<preset>-<time>)")
    add(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="go on with a run (default: the latest)",
    )
    return Options(**vars(parser.parse_args(argv)))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command line's entry, by the name of `prog`; returns its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = parse_arguments(argv, prog)
    try:
        _, report = run(options)
    except (CheckpointError, DataError, TrainingError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except MissingPackageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; `--resume RUN` goes on from the last checkpoint", file=sys.stderr)
        return 130
    if report:
        print(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
