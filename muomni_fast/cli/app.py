"""The commands of `muomni-fast`."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from .. import __version__
from ..backend import doctor as describe_installation
from ..code_files import MOST_SIZE, SUFFIX
from ..loading import SHIPPED_MODEL
from ..vocoder.modules import HiFiGANVocoder
from . import exports, sources
from .calls import Commands
from .describe import describe, failed, lines
from .encoding import Encoder
from .models import (
    NO_TALKER,
    device_of,
    dtype_of,
    inside,
    model_path,
    open_coder,
    open_voice,
    voice_of,
)
from .options import (
    USAGE,
    Batch,
    Beam,
    Books,
    Device,
    Dtype,
    Format,
    Inputs,
    Json,
    MaxFrames,
    Model,
    Out,
    Overwrite,
    Part,
    Seed,
    Speaker,
    Temperature,
    Text,
    TopK,
    Wav,
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
    cls=Commands,
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
    format: Format = "muc",
    beam: Beam = 1,
    batch: Batch = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Audio to codes.

    muomni-fast encode speech/ -o codes/

    muomni-fast encode a.wav -o a.muc --n-codebooks 1 --model runs/first

    What is there already, of the same model and of a file as long, is skipped.
    """
    with ending(as_json=as_json):
        suffix, write, read = exports.format_of(format)
        todo = pairs(inputs, out, suffix, AUDIO, "audio files")
        where = device_of(device)
        coder = open_coder(model_path(model), where, "encode")
        books, report = coder.books(n_codebooks), Report("encode", as_json)
        if coder.codec.rvq.codebook_size > MOST_SIZE:
            raise UsageError(f"--model {model}: expected at most {MOST_SIZE:,} codes per codebook")
        with report.progress(sources.seconds_of(pair.source for pair in todo)):
            encoder = Encoder(coder, books, batch_of(batch, where), report, overwrite, beam)
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

    muomni-fast decode codes/ -o decoded/

    muomni-fast decode a.muc -o a.wav --model runs/first
    """
    with ending(as_json=as_json):
        todo = pairs(inputs, out, ".wav", (SUFFIX,), "files of codes")
        where = device_of(device)
        coder = open_coder(model_path(model), where, "decode")
        coder.books(n_codebooks)
        voice = voice_of(coder.codec.vocoder, coder.codec.config, where, dtype_of(dtype))
        report = Report("decode", as_json)
        _say_how_it_sounds(report, model, voice.streams)
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

    muomni-fast resynth a.flac -o a-again.wav

    muomni-fast resynth speech/ -o again/ --model runs/first
    """
    with ending(as_json=as_json):
        todo = pairs(inputs, out, ".wav", AUDIO, "audio files")
        where = device_of(device)
        coder = open_coder(model_path(model), where, "resynth")
        books = coder.books(n_codebooks)
        voice = voice_of(coder.codec.vocoder, coder.codec.config, where, dtype_of(dtype))
        report = Report("resynth", as_json)
        _say_how_it_sounds(report, model, voice.streams)
        renderer = Renderer(voice, batch_of(batch, where), report, overwrite)
        _render(renderer, report, todo, lambda pair: sources.resynthesized(pair, coder, books))


@app.command()
def vocode(
    inputs: Inputs,
    out: Out,
    model: Model = None,
    part: Part = None,
    batch: Batch = None,
    device: Device = None,
    dtype: Dtype = "float32",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Audio, or log-mels that numpy saved, (n_mels, T), through the vocoder alone.

    muomni-fast vocode a.wav -o again/

    muomni-fast vocode mels/ -o sound/ --model hifigan/
    """
    with ending(as_json=as_json):
        todo = pairs(inputs, out, ".wav", (*AUDIO, ".npy"), "audio files or mels")
        where = device_of(device)
        voice = open_voice(model_path(model), where, dtype_of(dtype), part)
        report = Report("vocode", as_json)
        _say_how_it_sounds(report, model, voice.streams)

        def sound(pair: Pair) -> Sound:
            kind = sources.of_mel if pair.source.suffix.lower() == ".npy" else sources.of_audio
            return kind(pair, voice.mel, where)

        renderer = Renderer(voice, batch_of(batch, where), report, overwrite)
        _render(renderer, report, todo, sound)


@app.command()
def speak(
    text: Text,
    out: Wav,
    model: Model = None,
    speaker: Speaker = None,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    seed: Seed = 0,
    max_frames: MaxFrames = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Text to speech, by a Talker that was trained on the model's codes.

    muomni-fast speak "Good morning." -o morning.wav --model runs/first

    muomni-fast speak "Good morning." -o morning.wav --model runs/first --speaker ada
    """
    with ending(as_json=as_json):
        path = model_path(model)
        coder = open_coder(path, device_of(device), "speak")
        if coder.codec.talker is None:
            raise UsageError(NO_TALKER.format(where=path))
        report = Report("speak", as_json)
        _say_how_it_sounds(report, model, isinstance(inside(coder.codec.vocoder), HiFiGANVocoder))
        options: dict[str, Any] = {"speaker": speaker, "temperature": temperature, "seed": seed}
        options |= {"top_k": top_k, "max_frames": max_frames}
        given = {name: value for name, value in options.items() if value is not None}
        say(coder, text, Path(out), report, overwrite, **given)
        raise typer.Exit(report.finish())


@app.command()
def info(
    inputs: Annotated[list[str], typer.Argument(metavar="PATH", help="Files, folders, or models.")],
    part: Part = None,
    as_json: Json = False,
) -> None:
    """What files of codes, audio files, folders of them, or models hold.

    muomni-fast info a.muc codes/ muomni-62

    muomni-fast info runs/first
    """
    with ending(as_json=as_json):
        found = []
        for path in inputs:
            try:
                found.append({"path": path} | describe(path, part))
            except FAULTS as error:
                found.append({"path": path, "error": str(error)})
        print(json.dumps(found, indent=2) if as_json else "\n\n".join(map(lines, found)))
        raise typer.Exit(int(any(map(failed, found))))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As without it: it is JSON.")] = False,
) -> None:
    """What is installed, and what will run each operation, as JSON."""
    try:
        print(json.dumps(describe_installation(), indent=2))
    except ValueError as error:
        fail(str(error), USAGE, as_json)


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
        words = sys.argv[1:] if argv is None else list(argv)
        app(args=words, prog_name="muomni-fast", obj=words)
    except SystemExit as end:
        if isinstance(end.code, str):  # a message, which Python would print as it ends
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    return 0


def _say_how_it_sounds(report: Report, model: str | None, has_vocoder: bool) -> None:
    """Note that a model, as `--model` named it, has no vocoder."""
    if not has_vocoder:
        report.note(f"{model or SHIPPED_MODEL.name} has no vocoder: Griffin-Lim is used")


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
