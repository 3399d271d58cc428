"""Drop-in modules: the reference's constructors and state dicts, run by `functional`."""

from torch import Tensor

from . import backend, functional, reference


class RVQ(reference.RVQ):
    __doc__ = reference.RVQ.__doc__

    _encode = staticmethod(functional.rvq_encode)
    _decode = staticmethod(functional.rvq_decode)
    _quantize = staticmethod(functional.rvq_quantize)


class ResBlock(reference.ResBlock):
    __doc__ = reference.ResBlock.__doc__

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) -> (B, channels, T)."""
        backend.choose("resblock", x)
        return super().forward(x)


class MRF(reference.MRF):
    __doc__ = reference.MRF.__doc__

    resblock_class = ResBlock
    _mrf = staticmethod(functional.mrf)


class HiFiGANVocoder(reference.HiFiGANVocoder):
    __doc__ = reference.HiFiGANVocoder.__doc__

    resblock_class = ResBlock
    _mrf = staticmethod(functional.mrf)

    def forward(self, mel: Tensor) -> Tensor:
        """Generate audio: (B, n_mels, T) -> (B, T * hop_length), in [-1, 1]."""
        backend.choose("generator", mel)
        return super().forward(mel)


class NeuralVocoder(reference.NeuralVocoder):
    __doc__ = reference.NeuralVocoder.__doc__

    generator_class = HiFiGANVocoder
