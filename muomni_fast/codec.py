"""The drop-in codec: audio -> codes -> audio."""

from . import reference
from .rvq.modules import RVQ
from .vocoder.modules import NeuralVocoder


class SpeechCodec(reference.SpeechCodec):
    __doc__ = reference.SpeechCodec.__doc__

    quantizer_class = RVQ
    vocoder_class = NeuralVocoder
