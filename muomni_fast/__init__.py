"""Fast speech codec and vocoder modules, drop-in for the plain PyTorch ones in
`muomni_fast.reference`.

Importing this needs torch and numpy only; triton is used where it is installed.
"""

from . import functional
from .backend import BackendUnavailableError, doctor, explain
from .codec import SpeechCodec
from .counters import CodeRangeError, raise_if_errors
from .loading import load, save
from .reference import (
    GriffinLimVocoder,
    MelConfig,
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    RVQOutput,
    TalkerOutput,
    log_mel,
    pool_frames,
    unpool_frames,
)
from .reference.errors import AudioFormatError, CheckpointError, DataError, TrainingError
from .rvq.modules import RVQ
from .talker.modules import Talker
from .vocoder.modules import MRF, HiFiGANVocoder, NeuralVocoder, ResBlock

# Pickled models name the public module, wherever a class lies inside.
for _class in (
    BackendUnavailableError,
    CodeRangeError,
    MRF,
    RVQ,
    HiFiGANVocoder,
    NeuralVocoder,
    ResBlock,
    SpeechCodec,
    Talker,
):
    _class.__module__ = __name__

__version__ = "0.2.0"

__all__ = [
    "MRF",
    "RVQ",
    "AudioFormatError",
    "BackendUnavailableError",
    "CheckpointError",
    "CodeRangeError",
    "DataError",
    "GriffinLimVocoder",
    "HiFiGANVocoder",
    "MelConfig",
    "MultiPeriodDiscriminator",
    "MultiScaleDiscriminator",
    "NeuralVocoder",
    "RVQOutput",
    "ResBlock",
    "SpeechCodec",
    "Talker",
    "TalkerOutput",
    "TrainingError",
    "doctor",
    "explain",
    "functional",
    "load",
    "log_mel",
    "pool_frames",
    "raise_if_errors",
    "save",
    "unpool_frames",
]
