"""`muomni-fast`, also by `python -m muomni_fast`: the commands of `cli/`, or `doctor` alone where
the extra `cli` is not installed."""

import argparse
import json
from collections.abc import Sequence

from . import __version__
from .backend import doctor
from .reference.packages import installing, lacking

NEEDED = "typer", "soundfile", "soxr", "safetensors", "tqdm"  # the extra


def main(argv: Sequence[str] | None = None) -> int:
    """The command line's entry; returns its exit status."""
    missing = lacking(NEEDED)
    if missing:
        return doctor_alone(missing, argv)
    from .cli.app import run

    return run(argv)


def doctor_alone(missing: Sequence[str], argv: Sequence[str] | None = None) -> int:
    """`doctor` and `--version`, which need torch and numpy only."""
    extra = f"other commands need {', '.join(missing)}: {installing('cli')}"
    parser = argparse.ArgumentParser(prog="muomni-fast", epilog=extra)
    parser.add_argument("command", help="doctor: print the installation as JSON")
    parser.add_argument("--version", action="version", version=__version__)
    options, rest = parser.parse_known_args(argv)
    if options.command != "doctor":
        parser.error(f"{options.command}: {extra}")
    if rest:
        parser.error(f"doctor takes no arguments, got {' '.join(rest)}")
    try:
        print(json.dumps(doctor(), indent=2))
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
