"""Read broken files by the thousand: `python tests/fuzz.py [PART...] [--files N] [--seed S]`.

Each is either read right or refused by name, within limits of time and memory. Prints a line of
figures for each part; a file at fault is left in the folder that is printed.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from support.fuzz_audio import fuzz_audio
from support.fuzz_checkpoints import fuzz_checkpoints
from support.fuzz_codes import fuzz_codes
from support.fuzz_pretrained import fuzz_pretrained

PARTS = {
    "audio": fuzz_audio,
    "checkpoints": fuzz_checkpoints,
    "codes": fuzz_codes,
    "pretrained": fuzz_pretrained,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}: all")
    parser.add_argument("--files", type=int, default=1500, help="of each part")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for part in options.parts or PARTS:
        if part not in PARTS:
            parser.error(f"{part}: expected one of {', '.join(PARTS)}")
        folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{part}-"))
        print(f"{part}: seed {options.seed}, in {folder}", file=sys.stderr)
        print(f"{part}: {PARTS[part](options.files, options.seed, folder)}", flush=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
