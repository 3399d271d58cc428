"""The drop-in codec: audio -> codes -> audio."""

from typing import Self

from . import reference
from .rvq.modules import RVQ
from .talker.modules import Talker
from .vocoder.modules import HiFiGANVocoder, NeuralVocoder


class SpeechCodec(reference.SpeechCodec):
    __doc__ = reference.SpeechCodec.__doc__

    quantizer_class = RVQ
    vocoder_class = NeuralVocoder
    talker_class = Talker

    def prepare(self) -> Self:
        """Prepare the parts that can be: see `RVQ.prepare` and `HiFiGANVocoder.prepare`."""
        for part in (self.rvq, self.vocoder):
            if isinstance(part, (RVQ, HiFiGANVocoder, NeuralVocoder)):
                part.prepare()
        return self
