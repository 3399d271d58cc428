"""What `train.py` is asked for, and the config that makes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import muomni_fast.reference as reference_backend

from ..audio.mel import require_same_mel
from ..checkpoint import restore, weights_digest
from ..reading import blaming
from .config import Recipe, TrainConfig, require_in_range
from .mel_codec import KIND, read_mel_codec, require_same_pooling
from .presets import preset
from .registry import STAGES
from .run_folder import finished_checkpoint

# What a resumed run may change: these, and the recipe of a stage that has not begun.
CHANGEABLE = {"resume", "device", "workers", "backend", "stage"}
RECIPE = {"steps", "batch_size", "decoded_mels", "init"}
MOVABLE = {"decoded_mels"}  # of any recipe: where a quantizer lies, which is known by its digest


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
    init: str | None = None
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

    def recipe_changes(
        self, config: TrainConfig, stages: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        """What was said of recipes, by stage; of a quantizer's checkpoint, its path and digest.

        Args:
            config: of the run.
            stages: that are trained. Where a quantizer lies, others may be told too.

        Raises:
            ValueError: something was said that no recipe takes.
            CheckpointError, TrainingError: the quantizer is not finished, cannot be read, or does
                not fit the run.
        """
        said = {name: value for name, value in self.given().items() if name in RECIPE}
        names = {
            stage: said.keys() & changeable_fields(recipe, stage in stages)
            for stage, recipe in config.recipes.items()
        }
        for name in said:
            if not any(name in taken for taken in names.values()):
                raise ValueError(
                    f"--{name.replace('_', '-')}: not of the stages that are trained, "
                    f"{', '.join(stages)}"
                )
        changes = {stage: {name: said[name] for name in taken} for stage, taken in names.items()}
        if self.decoded_mels is not None:
            path = finished_checkpoint(self.decoded_mels, KIND)
            found = {"decoded_mels": str(path), "quantizer": read_mel_codec(path, config).digest}
            for own in changes.values():
                if "decoded_mels" in own:
                    own |= found
        if self.init is not None:
            changes[stages[0]] |= self._beginning(config, stages)
        return changes

    def _beginning(self, config: TrainConfig, stages: Sequence[str]) -> dict[str, Any]:
        """Where the weights lie that the one stage begins with, their digest and shape.

        All of the checkpoint is read, so that a run whose beginning cannot be read is not made.
        """
        stage = stages[0]
        if len(stages) > 1 or STAGES[stage].requires:
            takers = [name for name, kind in STAGES.items() if not kind.requires]
            raise ValueError(f"--init: expected --stage {' or '.join(takers)}, got {stages}")
        assert self.init is not None
        path = finished_checkpoint(self.init, stage)
        _, saved = restore(STAGES[stage].model_class(reference_backend), path, stage)
        with blaming(path):
            require_same_mel(config.mel, saved.mel, "run != checkpoint")
            if stage == KIND:
                require_same_pooling(saved.extra, config)
        model = config.recipes[stage].shaped_as(saved.config)
        return {"init": str(path), "init_digest": weights_digest(path, stage), "model": model}

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
    for stage, own in options.recipe_changes(config, stages).items():
        config = config.with_recipes([stage], **own)
    require_one_quantizer(config, stages)
    return config


def changeable_fields(recipe: Recipe, trained: bool) -> set[str]:
    """Fields of a recipe that options may set: all if its stage is trained, otherwise only where
    the quantizer lies, if it has one."""
    fields = vars(recipe)
    return set(fields) if trained else {n for n in MOVABLE if fields.get(n) is not None}


def require_one_quantizer(config: TrainConfig, stages: Sequence[str]) -> None:
    """Raise ValueError where, of the stages still to be trained, one is for a finished quantizer
    and another would make the run a quantizer of its own."""
    for name in stages:
        if KIND in stages and vars(config.recipes[name]).get("quantizer") is not None:
            raise ValueError(
                f"--decoded-mels: {name} is trained for a finished quantizer, but {KIND} would be "
                f"trained too, and be another; give --stage {name}"
            )
