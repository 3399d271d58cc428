"""Options that several commands have, and how every command ends."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Annotated

import torch
import typer

from ..reference.errors import CheckpointError
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
        help="A run's folder, a checkpoint's .json, or a folder of `save`; or muomni-62, which "
        "comes with the library (the default).",
    ),
]
Device = Annotated[
    str | None, typer.Option(help="torch device (default: cuda if there is one, else cpu).")
]
Dtype = Annotated[
    str, typer.Option(help="Of the vocoder: float32, bfloat16 or float16. Codes are exact anyway.")
]
Batch = Annotated[
    int | None,
    typer.Option(min=1, help="Clips at once (default: 16 on a GPU, 1 on a CPU)."),
]
Books = Annotated[
    int | None,
    typer.Option("--n-codebooks", metavar="K", help="Use the first K codebooks (default: all)."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Write every file anew, whatever is there.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def batch_of(given: int | None, device: torch.device) -> int:
    """Clips at once: a CPU gains nothing from more."""
    return given or (1 if device.type == "cpu" else 16)


@contextlib.contextmanager
def ending(extra: str = "cli") -> Iterator[None]:
    """Turn what stops a command into a line on stderr and an exit code.

    Args:
        extra: brings the packages that the command needs.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        yield
    except (UsageError, CheckpointError) as error:
        fail(str(error), USAGE)
    except ModuleNotFoundError as error:
        fail(f'{error.name} is not installed: pip install "muomni-fast[{extra}]"', USAGE)
    except torch.OutOfMemoryError as error:
        reason = str(error).split("\n")[0]
        fail(f"{reason} Try a smaller --batch; files that are done stay.", FAILED)
    except KeyboardInterrupt:
        print("stopped; the same command goes on with what is not done", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def fail(message: str, code: int) -> None:
    """Say what is wrong, and exit."""
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code) from None
