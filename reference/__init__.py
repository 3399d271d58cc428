"""Plain PyTorch codec and vocoder: the oracle for the fast kernels, and the training pipeline.

The modules here need torch and numpy only. Reading audio, training and checkpoints need the `train`
extra and are imported from their own modules (`audio.files`, `training`, `checkpoint`).
"""

from .audio.mel import MelConfig, log_mel, mel_filterbank, pool_frames, unpool_frames
from .codec import SpeechCodec
from .rvq.functional import RVQOutput, rvq_decode, rvq_encode, rvq_quantize
from .rvq.quantizer import RVQ
from .rvq.search import nearest_code
from .talker.model import Talker, TalkerOutput
from .vocoder.blocks import MRF, ResBlock
from .vocoder.discriminators import MultiPeriodDiscriminator, MultiScaleDiscriminator
from .vocoder.griffin_lim import GriffinLimVocoder
from .vocoder.hifigan import HiFiGANVocoder
from .vocoder.neural import NeuralVocoder

# Pickled models name this module, wherever a class lies inside.
for _class in (
    GriffinLimVocoder,
    HiFiGANVocoder,
    MelConfig,
    MRF,
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    NeuralVocoder,
    ResBlock,
    RVQ,
    RVQOutput,
    SpeechCodec,
    Talker,
    TalkerOutput,
):
    _class.__module__ = __name__

__all__ = [
    "MRF",
    "RVQ",
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
    "log_mel",
    "mel_filterbank",
    "nearest_code",
    "pool_frames",
    "rvq_decode",
    "rvq_encode",
    "rvq_quantize",
    "unpool_frames",
]
