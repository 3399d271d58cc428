"""What `train.py` is asked for, and the config that makes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from .config import TrainConfig, require_in_range
from .mel_codec import quantizer_checkpoint, read_mel_codec
from .presets import preset
from .registry import STAGES

# What a resumed run may change: these, and the recipe of a stage that has not begun.
CHANGEABLE = {"resume", "device", "workers", "backend", "stage"}
RECIPE = {"steps", "batch_size", "decoded_mels"}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run, as `train.py --help` describes it; None is what nobody said."""

    preset: str | None = None
    data: str | None = None
    split: str | None = None
    stage: str | None = None
    steps: int | None = None
    batch_size: int | None = None
    accumulate: int | None = None
    frames_per_code: int | None = None
    pooling: str | None = None
    decoded_mels: str | None = None
    amp: str | None = None
    seed: int | None = None
    backend: str | None = None
    device: str | None = None
    workers: int | None = None
    out: str | None = None
    resume: str | None = None  # "" is the latest

    def given(self) -> dict[str, Any]:
        """What was said."""
        return {name: v for name, v in dataclasses.asdict(self).items() if v is not None}

    def recipe_changes(self, config: TrainConfig) -> dict[str, Any]:
        """What was said of recipes; a quantizer's checkpoint as a path, and by its digest.

        Raises:
            CheckpointError, TrainingError: that quantizer is not finished, cannot be read, or does
                not fit the run.
        """
        changes = {name: value for name, value in self.given().items() if name in RECIPE}
        if self.decoded_mels is not None:
            path = quantizer_checkpoint(self.decoded_mels)
            digest = read_mel_codec(path, config).digest
            changes |= {"decoded_mels": str(path), "quantizer": digest}
        return changes

    def check(self) -> None:
        """Raise ValueError where a number is too small; names the option."""
        require_in_range(self.given(), lambda name: "--" + name.replace("_", "-"))


def chosen(config: TrainConfig, stage: str) -> list[str]:
    """The stages that a run trains, in order; "all" are those it has recipes for."""
    return [name for name in STAGES if name in config.recipes and stage in (name, "all")]


def make_config(options: Options) -> TrainConfig:
    """The preset with the command line's changes."""
    config = preset(options.preset or "quick")
    given = options.given()
    plain = ["accumulate", "amp", "seed", "frames_per_code", "pooling"]
    changes = {name: given[name] for name in plain if name in given}
    unit = config.mel.hop_length * changes.get("frames_per_code", config.frames_per_code)
    changes["segment_samples"] = -(-config.segment_samples // unit) * unit
    config = dataclasses.replace(config, **changes)
    stages = chosen(config, options.stage or "all")
    recipe_changes = options.recipe_changes(config)
    require_taken(config, stages, recipe_changes)
    for stage in stages:
        config = config.with_recipes([stage], **taken(config, stage, recipe_changes))
    return config


def taken(config: TrainConfig, stage: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Those of the changes that the stage's recipe has fields for."""
    fields = vars(config.recipes[stage])
    return {name: value for name, value in changes.items() if name in fields}


def require_taken(config: TrainConfig, stages: Sequence[str], changes: dict[str, Any]) -> None:
    """Raise ValueError where a change is of no stage's recipe."""
    for name in changes:
        if not any(name in vars(config.recipes[stage]) for stage in stages):
            raise ValueError(
                f"--{name.replace('_', '-')}: not of the stages that are trained, "
                f"{', '.join(stages)}"
            )
