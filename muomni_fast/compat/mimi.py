"""The quantizers of transformers' `MimiModel` (also inside Csm and Moshi).

Two residual quantizers, one of semantic and one of acoustic codes, take the same input, each
through its own projections; what they decode is added. Both are modules of one class, so each is
swapped by itself. A codeword is the mean of what fell to it, kept as a sum and a count.
"""

from typing import Any

from torch import Tensor

from .quantizers import QuantizerAdapter, sum_of_codewords


class MimiAdapter(QuantizerAdapter):
    """`encode`: (B, n, T) -> (Q, B, T). `decode`: (B, Q, T) -> (B, n, T)."""

    family = "Mimi"
    classes = ("transformers.models.mimi.modeling_mimi.MimiResidualVectorQuantizer",)

    @classmethod
    def books(cls, module: Any) -> list[Tensor]:
        return [
            codebook.embed_sum / codebook.cluster_usage.clamp(min=codebook.epsilon)[:, None]
            for codebook in (layer.codebook for layer in module.layers)
        ]

    def encode(self, embeddings: Tensor, num_quantizers: int | None = None) -> Tensor:
        """As the module's own; codes are the nearest codewords in real arithmetic to what
        `input_proj` gives."""
        module = self.module
        if not self.takes(embeddings):
            return self.own("encode", embeddings, num_quantizers)
        if module.input_proj is not None:
            embeddings = module.input_proj(embeddings)
        n_codebooks = module.num_quantizers if num_quantizers is None else num_quantizers
        return self.codes(embeddings.transpose(1, 2), n_codebooks).permute(2, 0, 1).contiguous()

    def decode(self, codes: Tensor) -> Tensor:
        """As the module's own."""
        module = self.module
        if not self.takes(codes) or codes.shape[1] > len(module.layers):
            return self.own("decode", codes)
        ready = self.ready()
        books = self.books(module) if ready is None else ready.books
        total = sum_of_codewords(codes.transpose(0, 1), books).transpose(1, 2)
        return total if module.output_proj is None else module.output_proj(total)
