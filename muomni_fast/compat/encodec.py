"""The quantizers of transformers' `EncodecModel` (also inside MusicGen and Bark) and `XcodecModel`:
residual vector quantization without projections, as many codebooks as a bandwidth has bits for."""

from typing import Any, ClassVar

from torch import Tensor

from .quantizers import QuantizerAdapter, sum_of_codewords


class EncodecAdapter(QuantizerAdapter):
    """`encode`: (B, D, T) -> (Q, B, T). `decode`: (Q, B, T) -> (B, D, T)."""

    family = "EnCodec"
    classes = ("transformers.models.encodec.modeling_encodec.EncodecResidualVectorQuantizer",)
    layers: ClassVar[str] = "layers"

    @classmethod
    def books(cls, module: Any) -> list[Tensor]:
        return [layer.codebook.embed for layer in getattr(module, cls.layers)]

    def encode(self, embeddings: Tensor, bandwidth: float | None = None) -> Tensor:
        """As the module's own; codes are the nearest codewords in real arithmetic."""
        if not self.takes(embeddings):
            return self.own("encode", embeddings, bandwidth)
        n_codebooks = self.module.get_num_quantizers_for_bandwidth(bandwidth)
        return self.codes(embeddings.transpose(1, 2), n_codebooks).permute(2, 0, 1).contiguous()

    def decode(self, codes: Tensor) -> Tensor:
        """As the module's own."""
        if not self.takes(codes) or len(codes) > len(self.books(self.module)):
            return self.own("decode", codes)
        return sum_of_codewords(codes, self.books(self.module)).transpose(1, 2)


class XcodecAdapter(EncodecAdapter):
    """The same, under other names."""

    family = "X-Codec"
    classes = ("transformers.models.xcodec.modeling_xcodec.XcodecResidualVectorQuantization",)
    layers = "quantizers"
