"""The stages of training, in their order."""

from .rvq_stage import RVQStage
from .vocoder_stage import VocoderStage

STAGES: dict[str, type[RVQStage] | type[VocoderStage]] = {"rvq": RVQStage, "vocoder": VocoderStage}
