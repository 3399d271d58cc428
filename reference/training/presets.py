"""The presets of `train.py`: what all stages share here, each stage's recipe from the stage."""

from typing import Any

from ..audio.mel import MelConfig
from ..vocoder.hifigan import PRESETS as PUBLISHED
from .config import TrainConfig
from .registry import STAGES

__all__ = ["SHARED", "TrainConfig", "preset", "presets"]

STACKED = {"frames_per_code": 5, "pooling": "stack", "segment_samples": 8960}
SHARED: dict[str, dict[str, Any]] = {
    "quick": {
        "frames_per_code": 5,
        "pooling": "stack",
        "segment_samples": 7680,
        "validate_every": 200,
        "checkpoint_every": 200,
        "log_every": 1,
    },
    "smoke": {
        "segment_samples": 2560,
        "validate_every": 10,
        "checkpoint_every": 4,
        "log_every": 1,
    },
    "muomni": {"frames_per_code": 5, "segment_samples": 8960},
    "muomni-4": STACKED,
    "muomni-8": STACKED,
    "muomni-62": {},  # every frame has its codes
    "muomni-62-small": {"segment_samples": 7680, "validate_every": 1000, "checkpoint_every": 500},
    **{name: {"mel": MelConfig(sample_rate=22050, n_mels=80)} for name in PUBLISHED},
}


def preset(name: str) -> TrainConfig:
    """A preset, with a recipe for every registered stage."""
    recipes = {key: stage.preset(name) for key, stage in STAGES.items()}
    return TrainConfig(name, recipes=recipes, **SHARED[name])


def presets() -> dict[str, TrainConfig]:
    """All presets by name."""
    return {name: preset(name) for name in SHARED}
