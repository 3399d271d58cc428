"""`python -m muomni_fast doctor`: what is installed, and what will run each operation."""

import argparse
import json
from collections.abc import Sequence

from .backend import doctor


def main(argv: Sequence[str] | None = None) -> int:
    """The command line's entry; returns its exit status."""
    parser = argparse.ArgumentParser(prog="muomni-fast", description=__doc__)
    parser.add_argument("command", choices=["doctor"], help="print the installation as JSON")
    parser.parse_args(argv)
    print(json.dumps(doctor(), indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
