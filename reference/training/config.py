"""What a run depends on besides its data and machine; saved with every run."""

import dataclasses
import types
import typing
from typing import Any

from ..audio.mel import MelConfig
from ..values import (
    MOST_HOP,
    require_bool,
    require_choice,
    require_dict,
    require_int,
    require_ints,
    require_number,
    require_text,
)

MOST_SEED = 1 << 62  # torch's are 64 bits
CHECKS: dict[Any, Any] = {
    int: lambda name, value: require_int(name, value, 0),
    float: require_number,
    str: require_text,
    bool: require_bool,
    tuple: lambda name, value: require_ints(name, value, 1),
    dict: require_dict,
}


def require_types(settings: Any) -> None:
    """Raise TypeError or ValueError unless the fields of a dataclass hold what they are declared
    to: integers not negative, lists of positive ones, finite numbers."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        name, value, hint = field.name, getattr(settings, field.name), hints[field.name]
        if isinstance(hint, types.UnionType):  # of something and None
            if value is None:
                continue
            hint = typing.get_args(hint)[0]
        check = CHECKS.get(typing.get_origin(hint) or hint)
        if check is not None:
            check(name, value)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a stage makes and how it learns; every stage has its own, with more fields.

    Attributes:
        steps: of training.
        batch_size: items per step over all processes and micro-batches.
        model: constructor arguments of the stage's product.
    """

    steps: int = 1000
    batch_size: int = 16
    model: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        require_types(self)
        require_int("steps", self.steps, 1)
        require_int("batch_size", self.batch_size, 1)

    def check(self, config: "TrainConfig") -> None:
        """Raise ValueError where the recipe does not fit the rest of `config`."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on besides its data and machine.

    Raises:
        TypeError, ValueError: a setting is of another type, or out of range.
        ValueError: the parts disagree on mel bands, hop or segment length; names both values.
    """

    preset: str
    mel: MelConfig = MelConfig()
    recipes: dict[str, Recipe] = dataclasses.field(default_factory=dict)  # by stage
    frames_per_code: int = 1
    segment_samples: int = 8192
    accumulate: int = 1
    amp: str = "none"
    seed: int = 0
    validate_every: int = 5000
    checkpoint_every: int = 5000
    log_every: int = 50

    def __post_init__(self) -> None:
        require_types(self)
        require_int("frames_per_code", self.frames_per_code, 1, MOST_HOP)
        require_int("seed", self.seed, 0, MOST_SEED)
        for name in (
            "segment_samples",
            "accumulate",
            "validate_every",
            "checkpoint_every",
            "log_every",
        ):
            require_int(name, getattr(self, name), 1)
        for recipe in self.recipes.values():
            recipe.check(self)
        unit = self.mel.hop_length * self.frames_per_code
        if self.segment_samples % unit:
            raise ValueError(
                f"segment_samples: expected a multiple of hop_length * frames_per_code = {unit}, "
                f"got {self.segment_samples}"
            )
        require_choice("amp", self.amp, "none", "bf16", "fp16")

    def recipe(self, stage: str) -> Any:
        """The recipe of a stage, of the class that the stage declares."""
        return self.recipes[stage]

    def with_recipes(self, stages: list[str], **changes: Any) -> "TrainConfig":
        """The same with other values in the recipes of `stages`."""
        changed = {name: dataclasses.replace(self.recipes[name], **changes) for name in stages}
        return dataclasses.replace(self, recipes=self.recipes | changed)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "TrainConfig":
        """Rebuild from what `dataclasses.asdict` and JSON made of a config.

        Raises:
            ValueError: it has a recipe of a stage that is not registered.
        """
        from .registry import STAGES  # whose stages import this module

        saved = dict(saved)
        recipes = dict(saved.pop("recipes", {}))
        for name in STAGES:  # until 0.1 each stage had two fields of its own
            if f"{name}_recipe" in saved:
                recipes[name] = {**saved.pop(f"{name}_recipe"), "model": saved.pop(name)}
        for name, recipe in recipes.items():
            if name not in STAGES:
                raise ValueError(f"recipes: {name} is not a stage; there are {', '.join(STAGES)}")
            recipes[name] = STAGES[name].recipe_class(**recipe)
        return cls(**{**saved, "mel": MelConfig(**saved["mel"]), "recipes": recipes})
