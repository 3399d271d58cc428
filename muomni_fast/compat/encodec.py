"""The quantizers of transformers' `EncodecModel` (also inside MusicGen and Bark) and `XcodecModel`:
residual vector quantization without projections, as many codebooks as a bandwidth has bits for."""

import math
from typing import Any, ClassVar

from torch import Tensor

from ..reference.values import (
    MOST_CODEBOOKS,
    MOST_HOP,
    require_dict,
    require_int,
    require_ints,
    require_number,
    require_sequence,
    shown,
)
from .quantizers import QuantizerAdapter, stated, sum_of_codewords

MOST_RATE = 1 << 24  # samples per second


class EncodecAdapter(QuantizerAdapter):
    """`encode`: (B, D, T) -> (Q, B, T). `decode`: (Q, B, T) -> (B, D, T)."""

    family = "EnCodec"
    classes = ("transformers.models.encodec.modeling_encodec.EncodecResidualVectorQuantizer",)
    configs: ClassVar[tuple[str, ...]] = "encodec", "EncodecModel"
    statistics = "inited", "cluster_size", "embed_avg"
    rate: ClassVar[str] = "sampling_rate"  # samples per second, in a config
    strides: ClassVar[str] = "upsampling_ratios"  # whose product is samples per frame

    @classmethod
    def sizes(cls, config: dict[str, Any], prefix: str) -> dict[str, Any]:
        found = stated(config, codebook_size="codebook_size", codebook_dim="codebook_dim")
        if "codebook_dim" in found:
            found["n_mels"] = found["codebook_dim"]
        inner = cls.strided(config)
        entries = (config, "target_bandwidths"), (config, cls.rate), (inner, cls.strides)
        if "codebook_size" in found and all(where.get(name) is not None for where, name in entries):
            hop = math.prod(require_ints(cls.strides, inner[cls.strides], 1, MOST_HOP))
            frames = -(-require_int(cls.rate, config[cls.rate], 1, MOST_RATE) // hop)
            widths = config["target_bandwidths"]
            found["n_codebooks"] = _codebooks(widths, frames, found["codebook_size"])
        return found

    @classmethod
    def strided(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The config that has `strides`."""
        return config

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
    configs = "xcodec", "XcodecModel"
    layers = "quantizers"

    rate = "sample_rate"
    strides = "downsampling_ratios"

    @classmethod
    def strided(cls, config: dict[str, Any]) -> dict[str, Any]:
        return require_dict("acoustic_model_config", config.get("acoustic_model_config", {}))


def _codebooks(widths: Any, frames: int, size: int) -> int:
    """As many codebooks of `size` codes as the last bandwidth, in kbit/s, has bits for."""
    width = require_number("target_bandwidths", require_sequence("target_bandwidths", widths)[-1])
    count = 1000 * width // (frames * max(1, math.ceil(math.log2(size))))
    if not 1 <= count <= MOST_CODEBOOKS:
        least = f"bits for 1 to {MOST_CODEBOOKS} codebooks at {frames} frames per second"
        raise ValueError(f"target_bandwidths: expected {least}, got {shown(widths)}")
    return int(count)
