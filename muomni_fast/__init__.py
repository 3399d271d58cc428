"""Fast speech codec and vocoder modules, drop-in for the plain PyTorch ones in
`muomni_fast.reference`.

Importing this needs torch and numpy only; triton is used where it is installed.
"""

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from .compat import Report, accelerate, restore

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

__version__ = "0.3.0.dev0"

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
    "Report",
    "ResBlock",
    "SpeechCodec",
    "Talker",
    "TalkerOutput",
    "TrainingError",
    "accelerate",
    "doctor",
    "explain",
    "functional",
    "load",
    "log_mel",
    "pool_frames",
    "raise_if_errors",
    "read_codes",
    "restore",
    "save",
    "unpool_frames",
    "write_codes",
]


def __getattr__(name: str) -> Any:
    """What few users need is imported when it is asked for."""
    if name in ("Report", "accelerate", "restore"):
        from . import compat

        return getattr(compat, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
