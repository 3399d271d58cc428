"""The quantizers of transformers' `MimiModel` (also inside Csm and Moshi).

Two residual quantizers, one of semantic and one of acoustic codes, take the same input, each
through its own projections; what they decode is added. Both are modules of one class, so each is
swapped by itself. A codeword is the mean of what fell to it, kept as a sum and a count.
"""

from typing import Any

from torch import Tensor

from .quantizers import QuantizerAdapter, stated, sum_of_codewords

EPSILON = 1e-5  # the least count that a codeword's sum is divided by
PARTS = {  # what the keys of each begin with, in the model
    "semantic": "semantic_residual_vector_quantizer.",
    "acoustic": "acoustic_residual_vector_quantizer.",
}


class MimiAdapter(QuantizerAdapter):
    """`encode`: (B, n, T) -> (Q, B, T). `decode`: (B, Q, T) -> (B, n, T)."""

    family = "Mimi"
    classes = ("transformers.models.mimi.modeling_mimi.MimiResidualVectorQuantizer",)
    configs = "mimi", "MimiModel"
    kept = "embed_sum", "cluster_usage"
    statistics = ("initialized",)
    projections = "input_proj", "output_proj"

    @classmethod
    def codewords(cls, codebook: Any) -> Tensor:
        least = getattr(codebook, "epsilon", EPSILON)  # which no file has
        return codebook.embed_sum / codebook.cluster_usage.clamp(min=least)[:, None]

    @classmethod
    def sizes(cls, config: dict[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = stated(
            config, codebook_size="codebook_size", codebook_dim="codebook_dim", n_mels="hidden_size"
        )
        inner = stated(config, inner="vector_quantization_hidden_dimension")
        if inner and "n_mels" in found:
            found["projections"] = inner["inner"] != found["n_mels"]
        count = stated(config, all="num_quantizers", semantic="num_semantic_quantizers")
        if len(count) == 2:
            acoustic = count["all"] - count["semantic"]
            if acoustic < 1:
                raise ValueError(
                    "num_quantizers: expected more than num_semantic_quantizers = "
                    f"{count['semantic']}, got {count['all']}"
                )
            semantic = prefix.endswith(PARTS["semantic"])
            found["n_codebooks"] = count["semantic"] if semantic else acoustic
        return found

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
