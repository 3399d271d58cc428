"""A run of training: its folder and config, its stages one after the other, its report.

The command line is `../train.py`, the loop of a stage `trainer.py`.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

import muomni_fast.reference as reference_backend

from ..atomic import remove_leftovers
from ..audio.mel import require_same_mel
from ..checkpoint import restore
from ..errors import CheckpointError, DataError, TrainingError
from ..packages import require_packages
from . import distributed
from .clip_table import describe_clips, differences, fingerprint, read_clips, write_clips
from .clips import Clip, find_clips, split_clips
from .config import TrainConfig
from .data import Corpus, read_held_out
from .options import (
    CHANGEABLE,
    MOVABLE,
    RECIPE,
    Options,
    chosen,
    make_config,
    require_one_quantizer,
)
from .random_state import seed_all
from .registry import STAGES
from .report import write_report
from .run_folder import RunFolder
from .trainer import Trainer

log = logging.getLogger("muomni_fast.train")

SHIPPED_SPEECH = Path(__file__).resolve().parents[1] / "speech"
CACHE_BYTES = 1 << 30  # of decoded clips, per process that trains
SHOWN_CHANGES = 5  # of clips, in an error


def run(options: Options) -> tuple[RunFolder, str]:
    """Train what `options` ask for.

    Returns:
        the run's folder, and the text of its report; "" in all processes but the first.

    Raises:
        ValueError, CheckpointError, DataError, TrainingError: by what is at fault.
        MissingPackageError: the extra `train` is not installed.
    """
    require_packages("training", "train")
    backend: ModuleType = reference_backend
    if options.backend == "fast":
        import muomni_fast

        backend = muomni_fast
    device = device_of(options.device)
    rank, world_size = distributed.join(device)
    with contextlib.ExitStack() as held:  # the lock of the run's folder
        opened = open_run(options, held) if rank == 0 else None
        return train(options, opened, backend, device)


Opened = tuple[RunFolder, TrainConfig, dict[str, Any], list[Clip]]


def train(
    options: Options, opened: Opened | None, backend: ModuleType, device: torch.device
) -> tuple[RunFolder, str]:
    """Train and report on an opened run; other processes than the first have None of it."""
    rank, world_size = distributed.join(device)
    folder, config, description, found = distributed.share(opened)

    training, held_out, by = split_clips(found, description["split"])
    if rank == 0:
        sizes = (len(training), len(held_out), by)
        log.info("%s: %d training clips, %d held out by %s", source_of(description), *sizes)
        log.info("run folder: %s", folder.path)
    clips = read_held_out(held_out, config.mel) if rank == 0 else []
    workers = options.workers
    if workers is None:
        workers = 4 if device.type == "cuda" else 0
    kept = folder.clips.parent
    corpus = Corpus(training, rank, world_size, CACHE_BYTES // max(1, workers), kept)
    for name in chosen(config, description["stage"]):
        if distributed.share(name in folder.results() if rank == 0 else None):
            continue
        required = load_required(folder, name, config, backend, device)
        seed_all(config.seed + list(STAGES).index(name))
        stage = STAGES[name](config, backend, device, required)
        trainer = Trainer(config, stage, stage.dataset(corpus), clips, folder, device, workers)
        results = trainer.run()
        if rank == 0:
            folder.add_results(name, results)
    text = ""
    if rank == 0:
        products = {
            name: load_product(folder, name, config, backend)
            for name in config.recipes
            if folder.model(name).exists()
        }
        speaks = any(STAGES[name].speaks for name in products)
        heard_before = read_held_out(training[:1], config.mel) if speaks else []
        text = write_report(folder, config, products, clips, heard_before)
    distributed.leave()
    return folder, text


def open_run(options: Options, held: contextlib.ExitStack) -> Opened:
    """Make a run folder, or open the one to resume; either way it is locked.

    Args:
        options: what to run.
        held: keeps the lock until it is closed.

    Returns:
        the folder, its config, its description, and the clips of its data.
    """
    options.check()
    if options.resume is not None:
        return resume_run(options, held)
    config = make_config(options)
    description = {
        "data": "shipped speech" if options.data is None else str(Path(options.data).resolve()),
        "split": options.split or "auto",
        "stage": options.stage or "all",
    }
    source = source_of(description)
    clips = find_clips(source)
    training, held_out, _ = split_clips(clips, description["split"])  # else there is no folder
    parts = {"training": training, "held-out": held_out}
    config = without_obstacles(config, description["stage"], parts)
    folder = RunFolder.new(config.preset, options.out, held)
    write_clips(folder.clips, describe_clips(clips, source))
    folder.write_config(config, **description, number=folder.next_number())  # now it is a run
    return folder, config, description, clips


def resume_run(options: Options, held: contextlib.ExitStack) -> Opened:
    """Open the run to resume; takes and returns what `open_run` does.

    Raises:
        CheckpointError: the run is in use, was begun with other settings, its data has changed, or
            a file that a recipe names cannot be read.
    """
    if options.out is not None:
        raise ValueError(f"--out {options.out}: a resumed run stays in its folder")
    folder = RunFolder.existing(options.resume or None)
    folder.lock(held)
    remove_leftovers(folder.path)
    config, description = folder.read_config()
    saved = dataclasses.asdict(config) | description
    for name, value in options.given().items():
        if name in CHANGEABLE | RECIPE:
            continue
        value = str(Path(value).resolve()) if name == "data" else value
        require_same(folder, name, saved[name], value)

    before = config, dict(description)
    description["stage"] = options.stage or description["stage"]
    config = with_new_stages(config, description["stage"])
    stages = chosen(config, description["stage"])
    for stage, own in options.recipe_changes(config, stages).items():
        if stage not in stages or folder.begun(stage):
            for name in own.keys() - MOVABLE:
                require_same(folder, name, getattr(config.recipes[stage], name), own[name])
            own = {name: own[name] for name in own.keys() & MOVABLE}
        config = config.with_recipes([stage], **own)
    require_one_quantizer(config, [name for name in stages if name not in folder.results()])
    require_readable(folder, config)

    clips = find_clips(source_of(description))
    require_same_clips(folder, description, clips)
    if (config, description) != before:
        folder.write_config(config, **description)
    return folder, config, description, clips


def without_obstacles(
    config: TrainConfig, stage: str, parts: Mapping[str, list[Clip]]
) -> TrainConfig:
    """The config without stages that cannot learn from some of these clips, or be measured on
    others.

    Raises:
        DataError: `stage` is one of them.
    """
    recipes = dict(config.recipes)
    for name in chosen(config, stage):
        found = {which: STAGES[name].obstacle(clips) for which, clips in parts.items()}
        reasons = [f"of the {which} clips, {why}" for which, why in found.items() if why]
        if not reasons:
            continue
        if stage == name:
            raise DataError(f"{name}: {reasons[0]}")
        log.warning("%s is left out: %s", name, reasons[0])
        del recipes[name]
    return dataclasses.replace(config, recipes=recipes)


def require_same_clips(folder: RunFolder, description: dict[str, Any], clips: list[Clip]) -> None:
    """Raise CheckpointError where a resumed run finds other clips than it was begun with."""
    source = source_of(description)
    if "fingerprint" in description:
        same = fingerprint(clips, source) == description["fingerprint"]
        changed = [] if same else ["names or speakers differ"]
    else:
        before, now = read_clips(folder.clips), describe_clips(clips, source)
        changed = list(itertools.islice(differences(before, now), SHOWN_CHANGES))
    if changed:
        raise CheckpointError(
            f"{folder.path}: {source} does not hold the clips it was begun with: "
            + "; ".join(changed)
        )


def require_readable(folder: RunFolder, config: TrainConfig) -> None:
    """Raise CheckpointError where a file that a recipe names cannot be read: of a finished stage
    too, or its report would miss it only after the training."""
    for recipe in config.recipes.values():
        try:
            recipe.require_readable(config)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; if it has moved: --resume {folder.path} --decoded-mels PLACE"
            ) from error


def with_new_stages(config: TrainConfig, stage: str) -> TrainConfig:
    """The config with its preset's recipe of `stage`, if that was not there when it was saved."""
    if stage == "all" or stage in config.recipes:
        return config
    recipe = STAGES[stage].preset(config.preset)
    return dataclasses.replace(config, recipes=config.recipes | {stage: recipe})


def require_same(folder: RunFolder, name: str, old: Any, new: Any) -> None:
    """Raise CheckpointError where a resumed run is given another setting."""
    if old != new:
        raise CheckpointError(f"{folder.path}: was begun with {name} = {old}, not {new}")


def source_of(description: dict[str, Any]) -> Path:
    """Where a run's data is.

    Raises:
        DataError: it is the repository's speech, which an installed package does not have.
    """
    if description["data"] != "shipped speech":
        return Path(description["data"])
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


def load_product(
    folder: RunFolder, stage: str, config: TrainConfig, backend: ModuleType
) -> nn.Module:
    """A stage's model, from its checkpoint, on the CPU, in eval mode."""
    product, saved = restore(STAGES[stage].model_class(backend), folder.model(stage), stage)
    require_same_mel(config.mel, saved.mel, f"run != {folder.model(stage)}")
    return product


def load_required(
    folder: RunFolder, stage: str, config: TrainConfig, backend: ModuleType, device: torch.device
) -> dict[str, nn.Module]:
    """The finished products that a stage requires: on `device`, in eval mode, without gradients.

    Raises:
        TrainingError: one is not finished; says how to get it.
    """
    required = {}
    for name in STAGES[stage].requires:
        if name not in folder.results():
            raise TrainingError(
                f"{stage}: requires the product of {name}, which {folder.path} does not hold; "
                f"train it there first: --resume {folder.path} --stage {name}"
            )
        product = load_product(folder, name, config, backend)
        required[name] = product.to(device).requires_grad_(False)
    return required
