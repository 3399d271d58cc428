"""Options that several commands have, and how every command ends."""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from typing import Annotated

import torch
import typer

from ..reference.errors import CheckpointError
from ..reference.packages import installing
from ..reference.rvq.beam import MOST_BEAM
from .places import UsageError

# Exit codes.
FAILED, USAGE, INTERRUPTED = 1, 2, 130

Inputs = Annotated[
    list[str], typer.Argument(metavar="IN", help="Files, folders, or patterns in quotes.")
]
Out = Annotated[
    str, typer.Option("--out", "-o", metavar="OUT", help="The file to write, or a folder.")
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="A run's folder, a checkpoint's .json, or a folder of `save`; or muomni-62 (the "
        "default) or muomni-62-small, which come with the library.",
    ),
]
Part = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What the part's keys begin with, where a model's file of weights holds several.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="torch device (default: cuda if there is one, else cpu)."),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Of the vocoder: float32, bfloat16 or float16. Codes are exact anyway."
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Clips at once (default: 16 on a GPU, 1 on a CPU)."),
]
Books = Annotated[
    int | None,
    typer.Option("--n-codebooks", metavar="K", help="Use the first K codebooks (default: all)."),
]
Beam = Annotated[
    int,
    typer.Option(
        min=1,
        max=MOST_BEAM,
        metavar="N",
        help="Paths through the codebooks that are kept: more is slower, with less error.",
    ),
]
Format = Annotated[
    str,
    typer.Option(metavar="NAME", help="muc (small, for decode), or npz or parquet to train on."),
]
Text = Annotated[str, typer.Argument(metavar="TEXT", help="What to say.")]
Speaker = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A voice of the Talker's (default: none of them)."),
]
Temperature = Annotated[
    float,
    typer.Option(min=0, metavar="X", help="0 takes the likeliest code; above, codes are drawn."),
]
TopK = Annotated[
    int | None,
    typer.Option(min=1, metavar="K", help="Draw of the K likeliest codes (default: of all)."),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Of what is drawn.")]
MaxFrames = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Stop after so many code steps (default: 512)."),
]
Wav = Annotated[str, typer.Option("--out", "-o", metavar="OUT", help="The .wav to write.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Write every file anew, whatever is there.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def batch_of(given: int | None, device: torch.device) -> int:
    """Clips at once: a CPU gains nothing from more."""
    return given or (1 if device.type == "cpu" else 16)


@contextlib.contextmanager
def ending(extra: str = "cli", as_json: bool = False) -> Iterator[None]:
    """Turn what stops a command into a line on stderr and an exit code.

    Args:
        extra: brings the packages that the command needs.
        as_json: also print a JSON object with "error" on stdout.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        yield
    except (UsageError, CheckpointError) as error:
        fail(str(error), USAGE, as_json)
    except ModuleNotFoundError as error:
        fail(f"{error.name} is not installed: {installing(extra)}", USAGE, as_json)
    except torch.OutOfMemoryError as error:
        reason = str(error).split("\n")[0]
        fail(f"{reason} Try a smaller --batch; files that are done stay.", FAILED, as_json)
    except KeyboardInterrupt:
        fail("stopped; the same command goes on with what is not done", INTERRUPTED, as_json)


def fail(message: str, code: int, as_json: bool = False) -> None:
    """Say what is wrong, and exit."""
    print(message if code == INTERRUPTED else f"error: {message}", file=sys.stderr)
    if as_json:
        print_error(message)
    raise typer.Exit(code) from None


def print_error(message: str) -> None:
    """What is wrong, as the JSON object that `--json` promises."""
    print(json.dumps({"error": message}, indent=2))
