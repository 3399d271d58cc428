"""What a run depends on besides its data and machine; saved with every run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ..audio.mel import MelConfig, pooled_width, require_pooling
from .field_types import require_field_types, require_type

# The least value of what has one, wherever it is set.
LEAST = {
    "steps": 1,
    "batch_size": 1,
    "accumulate": 1,
    "frames_per_code": 1,
    "segment_samples": 1,
    "validate_every": 1,
    "checkpoint_every": 1,
    "log_every": 1,
    "seed": 0,
    "workers": 0,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a stage makes and how it learns; every stage has its own, with more fields.

    Attributes:
        steps: of training.
        batch_size: items per step over all processes and micro-batches.
        model: constructor arguments of the stage's product.
        init: checkpoint of a finished product, whose weights training begins with; None for random
            ones, or what a stage starts from data with.
        init_digest: of these weights.
    """

    steps: int = 1000
    batch_size: int = 16
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    init: str | None = None
    init_digest: str | None = None

    def shaped_as(self, model: dict[str, Any]) -> dict[str, Any]:
        """`model`, of a product that begins with the weights of one with these arguments."""
        return model

    def check(self, config: "TrainConfig") -> None:
        """Raise ValueError where the recipe does not fit the rest of `config`."""

    def require_readable(self, config: "TrainConfig") -> None:
        """Raise CheckpointError where a file that the recipe names cannot be read, or is not what
        it was."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on besides its data and machine.

    Raises:
        ValueError: a number is too small, or a choice unknown; or the parts disagree on mel bands,
            hop or segment length. Names the values.
    """

    preset: str
    mel: MelConfig = MelConfig()
    recipes: dict[str, Recipe] = dataclasses.field(default_factory=dict)  # by stage
    frames_per_code: int = 1
    pooling: str = "mean"  # of these frames; what was saved without it is of means
    segment_samples: int = 8192
    accumulate: int = 1
    amp: str = "none"
    seed: int = 0
    validate_every: int = 5000
    checkpoint_every: int = 5000
    log_every: int = 50

    def __post_init__(self) -> None:
        require_in_range(vars(self))
        require_pooling(self.pooling)
        for name, recipe in self.recipes.items():
            require_in_range(vars(recipe), f"{name}: ".__add__)
            if (recipe.init is None) != (recipe.init_digest is None):
                raise ValueError(
                    f"{name}: init and init_digest: expected both or neither, got "
                    f"{recipe.init!r} and {recipe.init_digest!r}"
                )
            recipe.check(self)
        unit = self.mel.hop_length * self.frames_per_code
        if self.segment_samples % unit:
            raise ValueError(
                f"segment_samples: expected a multiple of hop_length * frames_per_code = {unit}, "
                f"got {self.segment_samples}"
            )
        if self.amp not in ("none", "bf16", "fp16"):
            raise ValueError(f'amp: expected "none", "bf16" or "fp16", got {self.amp!r}')

    @property
    def pooled_width(self) -> int:
        """Numbers of what one code stands for: the quantizer's `n_mels`."""
        return pooled_width(self.mel.n_mels, self.frames_per_code, self.pooling)

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
            KeyError: something is missing.
            TypeError: a value has another type than it should; names it.
            ValueError: a value does not fit, or a recipe is of a stage that is not registered.
        """
        from .registry import STAGES  # whose stages import this module

        saved = {"recipes": {}, **saved}
        require_type("recipes", saved["recipes"], dict[str, dict])
        recipes = dict(saved.pop("recipes"))
        for name in STAGES:  # until 0.1 each stage had two fields of its own
            if f"{name}_recipe" in saved:
                recipe, model = saved.pop(f"{name}_recipe"), saved.pop(name)
                require_type(f"{name}_recipe", recipe, dict)
                recipes[name] = {**recipe, "model": model}
        for name, recipe in recipes.items():
            if name not in STAGES:
                raise ValueError(f"recipes: {name} is not a stage; there are {', '.join(STAGES)}")
            require_field_types(STAGES[name].recipe_class, recipe, f"{name}: ")
            recipes[name] = STAGES[name].recipe_class(**recipe)
        mel = saved.pop("mel")
        require_type("mel", mel, dict)
        require_field_types(MelConfig, mel, "mel: ")
        require_field_types(cls, saved)
        return cls(**saved, mel=MelConfig(**mel), recipes=recipes)


def require_in_range(values: Mapping[str, Any], spelt: Callable[[str], str] = str) -> None:
    """Check the numbers that have a least value.

    Args:
        values: by name; others are left alone.
        spelt: how a name is written in the message.

    Raises:
        ValueError: one is too small; names it.
    """
    for name, least in LEAST.items():
        if values.get(name, least) < least:
            raise ValueError(f"{spelt(name)}: expected at least {least}, got {values[name]}")
