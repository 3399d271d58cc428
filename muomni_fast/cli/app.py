"""The commands of `muomni-fast`."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from .. import __version__
from ..backend import doctor as describe_installation
from ..code_files import MOST_SIZE, SUFFIX
from . import exports, sources
from .describe import describe, lines
from .encoding import Encoder
from .models import (
    NO_TALKER,
    device_of,
    dtype_of,
    model_path,
    open_coder,
    open_voice,
    voice_of,
)
from .options import (
    USAGE,
    Batch,
    Books,
    Device,
    Dtype,
    Inputs,
    Json,
    Model,
    Out,
    Overwrite,
    batch_of,
    ending,
    fail,
)
from .places import AUDIO, Pair, UsageError, pairs
from .rendering import Renderer, Sound
from .report import FAULTS, Report
from .speaking import say

app = typer.Typer(
    name="muomni-fast",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=(
        "Speech to discrete codes and back. Exit codes: 0 all is done, 1 a file failed (the others "
        "are done), 2 the command could not begin, 130 it was interrupted."
    ),
)
# Their arguments are another command line's.
HANDED_ON = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit(0)


@app.command()
def encode(
    inputs: Inputs,
    out: Out,
    model: Model = None,
    n_codebooks: Books = None,
    format: Annotated[
        str, typer.Option(help="muc (small, for decode), or npz or parquet to train on.")
    ] = "muc",
    batch: Batch = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Audio to codes.

    muomni-fast encode speech/ -o codes/ --model runs/first

    muomni-fast encode a.wav -o a.muc --model runs/first --n-codebooks 1

    What is there already, of the same model and of a file as long, is skipped.
    """
    with ending():
        suffix, write, read = exports.format_of(format)
        todo = pairs(inputs, out, suffix, AUDIO, "audio files")
        where = device_of(device)
        coder = open_coder(model_path(model), where, quiet=True)
        books, report = coder.books(n_codebooks), Report("encode", as_json)
        if coder.codec.rvq.codebook_size > MOST_SIZE:
            raise UsageError(f"--model {model}: expected at most {MOST_SIZE:,} codes per codebook")
        with report.progress(sources.seconds_of(pair.source for pair in todo)):
            encoder = Encoder(coder, books, batch_of(batch, where), report, overwrite)
            encoder.run(todo, write, read)
        raise typer.Exit(report.finish())


@app.command()
def decode(
    inputs: Inputs,
    out: Out,
    model: Model = None,
    n_codebooks: Books = None,
    batch: Batch = None,
    device: Device = None,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Files of codes to WAV files.

    muomni-fast decode codes/ -o decoded/ --model runs/first
    """
    with ending():
        todo = pairs(inputs, out, ".wav", (SUFFIX,), "files of codes")
        where = device_of(device)
        coder = open_coder(model_path(model), where)
        coder.books(n_codebooks)
        voice = voice_of(coder.codec.vocoder, coder.codec.config, where, dtype_of(dtype))
        report = Report("decode", as_json)
        renderer = Renderer(voice, batch_of(batch, where), report, overwrite)
        _render(renderer, report, todo, lambda pair: sources.of_codes(pair, coder, n_codebooks))


@app.command()
def resynth(
    inputs: Inputs,
    out: Out,
    model: Model = None,
    n_codebooks: Books = None,
    batch: Batch = None,
    device: Device = None,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Audio through codes and back, to hear what they keep.

    muomni-fast resynth a.flac -o a-again.wav --model runs/first
    """
    with ending():
        todo = pairs(inputs, out, ".wav", AUDIO, "audio files")
        where = device_of(device)
        coder = open_coder(model_path(model), where)
        books = coder.books(n_codebooks)
        voice = voice_of(coder.codec.vocoder, coder.codec.config, where, dtype_of(dtype))
        report = Report("resynth", as_json)
        renderer = Renderer(voice, batch_of(batch, where), report, overwrite)
        _render(renderer, report, todo, lambda pair: sources.resynthesized(pair, coder, books))


@app.command()
def vocode(
    inputs: Inputs,
    out: Out,
    model: Model = None,
    batch: Batch = None,
    device: Device = None,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Audio, or log-mels that numpy saved, (n_mels, T), through the vocoder alone.

    muomni-fast vocode a.wav -o again/ --model runs/first

    muomni-fast vocode mels/ -o sound/ --model hifigan/
    """
    with ending():
        todo = pairs(inputs, out, ".wav", (*AUDIO, ".npy"), "audio files or mels")
        where = device_of(device)
        voice = open_voice(model_path(model), where, dtype_of(dtype))
        report = Report("vocode", as_json)

        def sound(pair: Pair) -> Sound:
            kind = sources.of_mel if pair.source.suffix.lower() == ".npy" else sources.of_audio
            return kind(pair, voice.mel, where)

        renderer = Renderer(voice, batch_of(batch, where), report, overwrite)
        _render(renderer, report, todo, sound)


@app.command()
def speak(
    text: Annotated[str, typer.Argument(help="What to say.")],
    out: Out,
    model: Model = None,
    speaker: Annotated[
        str | None, typer.Option(help="A voice of the Talker's (default: none of them).")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 takes the likeliest code; above, codes are drawn.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Text to speech, by a Talker that was trained on the model's codes.

    muomni-fast speak "Good morning." -o morning.wav --model runs/first

    muomni-fast speak "Good morning." -o morning.wav --model runs/first --speaker ada
    """
    with ending():
        path = model_path(model)
        coder = open_coder(path, device_of(device))
        if coder.codec.talker is None:
            raise UsageError(NO_TALKER.format(where=path))
        report = Report("speak", as_json)
        options = {"speaker": speaker, "temperature": temperature, "seed": seed}
        say(coder, text, Path(out), report, overwrite, **options)
        raise typer.Exit(report.finish())


@app.command()
def info(
    inputs: Annotated[list[str], typer.Argument(metavar="PATH", help="Files, or models.")],
    as_json: Json = False,
) -> None:
    """What files of codes, audio files, or models hold.

    muomni-fast info a.muc runs/first
    """
    with ending():
        found, failed = [], False
        for path in inputs:
            try:
                found.append({"path": path} | describe(path))
            except FAULTS as error:
                found.append({"path": path, "error": str(error)})
                failed = True
        print(json.dumps(found, indent=2) if as_json else "\n\n".join(map(lines, found)))
        raise typer.Exit(int(failed))


@app.command()
def doctor() -> None:
    """What is installed, and what will run each operation, as JSON."""
    try:
        print(json.dumps(describe_installation(), indent=2))
    except ValueError as error:
        fail(str(error), USAGE)


@app.command(context_settings=HANDED_ON)
def train(context: typer.Context) -> None:
    """Train a model; `train --help` has its options."""
    with ending("train"):
        from ..reference.train import main as train_main
    raise typer.Exit(train_main(context.args, context.command_path))


@app.command(context_settings=HANDED_ON)
def evaluate(context: typer.Context) -> None:
    """Measure a run; `evaluate --help` has its options."""
    with ending("train"):
        from ..reference.evaluate import main as evaluate_main
    raise typer.Exit(evaluate_main(context.args, context.command_path))


def run(argv: Sequence[str] | None = None) -> int:
    """The command line's entry; returns its exit code."""
    try:
        app(args=None if argv is None else list(argv), prog_name="muomni-fast")
    except SystemExit as end:
        if isinstance(end.code, str):  # a message, which Python would print as it ends
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


def _render(
    renderer: Renderer, report: Report, todo: Sequence[Pair], sound_of: Callable[[Pair], Sound]
) -> None:
    """Make the sounds of files; those that cannot be read are reported."""
    sounds = []
    for pair in todo:
        try:
            sounds.append(sound_of(pair))
        except FAULTS as error:
            report.failed(pair, error)
    with report.progress(sum(sound.seconds for sound in sounds)), torch.no_grad():
        renderer.run(sounds)
    raise typer.Exit(report.finish())
