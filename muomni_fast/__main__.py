"""`python -m muomni_fast doctor`: what is installed, and what will run each operation."""

import argparse
import json
from collections.abc import Sequence

from . import __version__
from .backend import doctor


def main(argv: Sequence[str] | None = None) -> int:
    """The command line's entry; returns its exit status."""
    parser = argparse.ArgumentParser(prog="muomni-fast", description=__doc__)
    parser.add_argument("command", choices=["doctor"], help="print the installation as JSON")
    parser.add_argument("--version", action="version", version=__version__)
    parser.parse_args(argv)
    try:
        print(json.dumps(doctor(), indent=2))
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
