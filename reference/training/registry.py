"""The stages of training, in the order in which they run."""

from typing import Any

from .rvq_stage import RVQStage
from .stage import Stage
from .talker_stage import TalkerStage
from .vocoder_stage import VocoderStage

STAGES: dict[str, type[Stage[Any]]] = {}  # by name


def register(stage: type[Stage[Any]]) -> None:
    """Add a stage after those that are there.

    Raises:
        ValueError: its name is taken, or it requires a stage that would not run before it.
    """
    if stage.name in (*STAGES, "all"):
        raise ValueError(f"stage {stage.name!r}: the name is taken")
    missing = [name for name in stage.requires if name not in STAGES]
    if missing:
        raise ValueError(f"stage {stage.name!r}: requires {missing}; there are {list(STAGES)}")
    STAGES[stage.name] = stage


for _stage in (RVQStage, VocoderStage, TalkerStage):
    register(_stage)
