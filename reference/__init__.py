"""Plain PyTorch codec and vocoder: the oracle for the fast kernels, and the training pipeline.

The modules here need torch and numpy only. Reading audio, training and checkpoints need the `train`
extra and are imported from their own modules (`data`, `trainer`, `checkpoint`).
"""

from .discriminators import MultiPeriodDiscriminator, MultiScaleDiscriminator
from .griffin_lim import GriffinLimVocoder
from .hifigan import MRF, HiFiGANVocoder, ResBlock
from .mel import MelConfig, log_mel, mel_filterbank, pool_frames, unpool_frames
from .pipeline import SpeechCodec
from .rvq import RVQ, RVQOutput, rvq_decode, rvq_encode, rvq_quantize
from .search import nearest_code
from .vocoder import NeuralVocoder

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
    "log_mel",
    "mel_filterbank",
    "nearest_code",
    "pool_frames",
    "rvq_decode",
    "rvq_encode",
    "rvq_quantize",
    "unpool_frames",
]
