"""Train a speech codec and its vocoder: `python reference/train.py`.

Without arguments it trains both stages on the speech in this repository, in a few minutes on two
CPU cores, and reports on held-out clips. `--help` lists the options. Several GPUs:
`torchrun --nproc_per_node=N reference/train.py ...`. The loop itself is `trainer.py`.
"""

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

try:
    import muomni_fast.reference as reference_backend
    from muomni_fast.reference.training.trainer import Trainer
except ModuleNotFoundError as error:
    if error.name not in ("muomni_fast", "tqdm"):
        raise
    raise SystemExit(
        f"{error.name} is not installed; run `make train`, or: "
        'pip install -c constraints.txt -e ".[train]"'
    ) from error

import torch

from muomni_fast.reference.audio.mel import require_same_mel
from muomni_fast.reference.checkpoint import load_model, restore
from muomni_fast.reference.errors import (
    CheckpointError,
    DataError,
    TrainingError,
)
from muomni_fast.reference.training import distributed
from muomni_fast.reference.training.clips import Clip, find_clips, fingerprint, split_clips
from muomni_fast.reference.training.data import SpeechDataset, read_held_out
from muomni_fast.reference.training.presets import TrainConfig, presets
from muomni_fast.reference.training.registry import STAGES
from muomni_fast.reference.training.run_folder import RunFolder

log = logging.getLogger("muomni_fast.train")

SHIPPED_SPEECH = Path(__file__).resolve().parent / "speech"
CACHE_BYTES = 1 << 30  # of decoded clips, per process that trains
# What a resumed run may change; anything else must be as it was.
CHANGEABLE = {"resume", "device", "workers", "backend"}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; options left out are None, so that a resumed run can tell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--preset", choices=list(presets()), help="what to train (default: quick)")
    add("--data", help="folder of audio, or CSV manifest (default: the shipped speech)")
    add("--split", choices=["auto", "speaker", "clip"], help="what to hold out (default: auto)")
    add("--stage", choices=[*STAGES, "all"], help="which stage (default: all)")
    add("--steps", type=int, help="steps of each stage, instead of the preset's")
    add("--batch-size", type=int, help="segments per step over all processes")
    add("--accumulate", type=int, help="micro-batches per step (default: 1)")
    add("--frames-per-code", type=int, help="mel frames averaged into one code")
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
    return parser.parse_args(argv)


def make_config(options: argparse.Namespace) -> TrainConfig:
    """The preset with the command line's changes."""
    config = presets()[options.preset or "quick"]
    given = {name: value for name, value in vars(options).items() if value is not None}
    for name in ("steps", "batch_size", "accumulate", "frames_per_code", "seed"):
        least = 0 if name == "seed" else 1
        if given.get(name, least) < least:
            option = name.replace("_", "-")
            raise ValueError(f"--{option}: expected at least {least}, got {given[name]}")
    plain = ["accumulate", "amp", "seed", "frames_per_code"]
    changes = {name: given[name] for name in plain if name in given}
    recipe = {n: given[n] for n in ("steps", "batch_size") if n in given}
    unit = config.mel.hop_length * changes.get("frames_per_code", config.frames_per_code)
    changes["segment_samples"] = -(-config.segment_samples // unit) * unit
    changes["rvq_recipe"] = dataclasses.replace(config.rvq_recipe, **recipe)
    changes["vocoder_recipe"] = dataclasses.replace(config.vocoder_recipe, **recipe)
    return dataclasses.replace(config, **changes)


def open_run(
    options: argparse.Namespace,
) -> tuple[RunFolder, TrainConfig, dict[str, Any], list[Clip]]:
    """Make a run folder, or open the one to resume.

    Returns:
        the folder, its config, its description, and the clips of its data.
    """
    if options.resume is None:
        config = make_config(options)
        run = {
            "data": "shipped speech" if options.data is None else str(Path(options.data).resolve()),
            "split": options.split or "auto",
            "stage": options.stage or "all",
        }
        source = source_of(run)
        clips = find_clips(source)
        split_clips(clips, run["split"])  # what cannot be split makes no folder
        run["fingerprint"] = fingerprint(clips, source)
        folder = RunFolder.new(config.preset, options.out)
        folder.write_config(config, **run)
        return folder, config, run, clips
    if options.out is not None:
        raise ValueError(f"--out {options.out}: a resumed run stays in its folder")
    folder = RunFolder.existing(options.resume or None)
    config, run = folder.read_config()
    given = {k: v for k, v in vars(options).items() if v is not None and k not in CHANGEABLE}
    saved = dataclasses.asdict(config) | run
    for name, value in given.items():
        kept = [
            getattr(r, name) for r in (config.rvq_recipe, config.vocoder_recipe) if hasattr(r, name)
        ]
        value = str(Path(value).resolve()) if name == "data" else value
        for old in kept or [saved[name]]:
            if old != value:
                raise CheckpointError(f"{folder.path}: was begun with {name} = {old}, not {value}")
    source = source_of(run)
    clips = find_clips(source)
    if fingerprint(clips, source) != run["fingerprint"]:
        raise CheckpointError(f"{folder.path}: {source} does not hold the clips it was begun with")
    return folder, config, run, clips


def source_of(run: dict[str, Any]) -> Path:
    """Where a run's data is.

    Raises:
        DataError: it is the repository's speech, which an installed package does not have.
    """
    if run["data"] != "shipped speech":
        return Path(run["data"])
    if not SHIPPED_SPEECH.exists():
        raise DataError("the speech to train on is in the repository only; give other --data")
    return SHIPPED_SPEECH


def device_of(name: str | None) -> torch.device:
    """The device to train on.

    Raises:
        ValueError: there is no such device, or it does not work.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error


def train(options: argparse.Namespace) -> RunFolder:
    """Run what the command line asks for; returns the run's folder."""
    backend: ModuleType = reference_backend
    if options.backend == "fast":
        import muomni_fast

        backend = muomni_fast
    device = device_of(options.device)
    rank, world_size = distributed.join(device)
    opened = open_run(options) if rank == 0 else None
    folder, config, run, found = distributed.share(opened)

    training, held_out, by = split_clips(found, run["split"])
    if rank == 0:
        sizes = (len(training), len(held_out), by)
        log.info("%s: %d training clips, %d held out by %s", source_of(run), *sizes)
        log.info("run folder: %s", folder.path)
    clips = read_held_out(held_out, config.mel) if rank == 0 else []
    workers = options.workers
    if workers is None:
        workers = 4 if device.type == "cuda" else 0
    for number, (stage_name, stage_class) in enumerate(STAGES.items()):
        if run["stage"] not in (stage_name, "all"):
            continue
        if distributed.share(stage_name in folder.results() if rank == 0 else None):
            continue
        torch.manual_seed(config.seed + number)
        stage = stage_class(config, backend, device)
        data = SpeechDataset(
            training,
            config.mel,
            config.segment_samples,
            stage.batch_size,
            config.seed,
            rank,
            world_size,
            stage.by_length,
            cache_bytes=CACHE_BYTES // max(1, workers),
        )
        pairs = [(audio, mel) for _, audio, mel in clips]
        trainer = Trainer(config, stage, data, pairs, folder, device, workers)
        results = trainer.run()
        if rank == 0:
            if stage_name == "rvq":
                from muomni_fast.reference.training.report import compare_sizes

                mels = [mel for _, mel in pairs]
                results["sizes"] = compare_sizes(config, data, mels, results["start"])
            folder.add_results(stage_name, results)
    if rank == 0:
        from muomni_fast.reference.training.report import write_report

        products = {
            stage_name: load_product(folder, stage_name, config, backend)
            for stage_name in STAGES
            if folder.model(stage_name).exists()
        }
        print(write_report(folder, config, products, clips))
    distributed.leave()
    return folder


def load_product(
    folder: RunFolder, stage_name: str, config: TrainConfig, backend: ModuleType
) -> torch.nn.Module:
    """A finished stage's model, from its checkpoint, on the CPU."""
    checkpoint = load_model(folder.model(stage_name), stage_name)
    require_same_mel(config.mel, checkpoint.mel, f"run != {folder.model(stage_name)}")
    model_class = backend.RVQ if stage_name == "rvq" else backend.HiFiGANVocoder
    return restore(model_class, checkpoint, folder.model(stage_name))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line's entry; returns its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = parse_arguments(argv)
    try:
        train(options)
    except (CheckpointError, DataError, TrainingError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; `--resume RUN` goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
