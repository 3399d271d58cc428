"""Fast speech codec and vocoder modules, drop-in for the plain PyTorch ones in
`muomni_fast.reference`.

Importing this needs torch and numpy only; triton is used where it is installed.
"""

from . import functional
from .backend import BackendUnavailableError, doctor, explain
from .code_files import CodeInfo, read_codes, write_codes
from .codec import SpeechCodec
from .counters import CodeRangeError, raise_if_errors
from .loading import SHIPPED_MODEL, load, save
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
from .reference.errors import (
    AudioFormatError,
    CheckpointError,
    CodeFileError,
    DataError,
    TrainingError,
)
from .rvq.modules import RVQ
from .talker.modules import Talker
from .vocoder.modules import MRF, HiFiGANVocoder, NeuralVocoder, ResBlock

# Pickled models name the public module, wherever a class lies inside.
for _class in (
    BackendUnavailableError,
    CodeInfo,
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
    "SHIPPED_MODEL",
    "AudioFormatError",
    "BackendUnavailableError",
    "CheckpointError",
    "CodeFileError",
    "CodeInfo",
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
    "read_codes",
    "save",
    "unpool_frames",
    "write_codes",
]
