"""`ResidualVQ` of vector-quantize-pytorch, for inference: Euclidean, codebooks of one size, and one
projection in and one out for all of them."""

from typing import Any

import torch
from torch import Tensor, nn

from .adapter import differentiated
from .quantizers import QuantizerAdapter, sum_of_codewords

# What a codebook searches by something else than the distance to its codewords.
OTHERWISE = {
    "use_cosine_sim": "its codebooks are searched by cosine",
    "affine_param": "its codebooks are shifted and scaled",
    "vq_bridge": "its codebooks go through a module of their own",
}


class VectorQuantizeAdapter(QuantizerAdapter):
    """`forward`: (B, T, dim) -> quantized frames, codes (B, T, Q) and losses, which are zero in
    inference. `get_output_from_indices`: codes -> frames."""

    family = "vector-quantize-pytorch"
    classes = ("vector_quantize_pytorch.residual_vq.ResidualVQ",)
    methods = ("forward", "get_output_from_indices")

    @classmethod
    def books(cls, module: Any) -> list[Tensor]:
        return [layer._codebook.embed[0] for layer in module.layers]

    @classmethod
    def misfit(cls, module: Any) -> str:
        reason = super().misfit(module)
        if reason:
            return reason
        if module.diveq or module.implicit_neural_codebook:
            return "its codewords depend on more than their code"
        if module.accept_image_fmap:
            return "it takes images"
        for layer in module.layers:
            if layer.heads != 1 or layer.accept_3d_fmap or not layer.channel_last:
                return "its frames are not (B, T, dim)"
            for name, reason in OTHERWISE.items():
                if getattr(layer._codebook, name):
                    return reason
            if not layer._codebook.initted:
                return "its codebooks are still to be made of the first batch"
            if not isinstance(layer.project_in, nn.Identity):
                return "its codebooks have projections of their own"
        return ""

    @classmethod
    def slower(cls, module: Any) -> str:
        return ""  # their own takes longer at any size

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        indices: Any = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool = False,
        beam_size: int | None = None,
        rand_quantize_dropout_fixed_seed: int | None = None,
    ) -> Any:
        """As the module's own; codes are the nearest codewords in real arithmetic to what
        `project_in` gives."""
        module = self.module
        plain = mask is None and indices is None and not return_all_codes
        beam = module.eval_beam_size if beam_size is None else beam_size
        if not plain or (beam or 1) > 1 or not self.takes(x) or self._otherwise(x):
            return self.own(
                "forward",
                x,
                mask,
                indices,
                return_all_codes,
                sample_codebook_temp,
                freeze_codebook,
                beam_size,
                rand_quantize_dropout_fixed_seed,
            )
        z = module.project_in(x)
        codes = self.codes(z)
        quantized = sum_of_codewords(codes.unbind(-1), self.books(module))
        losses = torch.zeros(codes.shape[-1], device=x.device)
        return module.project_out(quantized), codes, losses

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """As the module's own; -1 adds nothing."""
        module, books = self.module, self.books(self.module)
        if not self.takes(indices) or indices.shape[-1] != len(books):
            return self.own("get_output_from_indices", indices)
        shape = books[0].shape
        with_zeros = [torch.cat([book, book.new_zeros(1, shape[1])]) for book in books]
        codes = indices.where(indices != -1, shape[0])
        return module.project_out(sum_of_codewords(codes.unbind(-1), with_zeros))

    def _otherwise(self, x: Tensor) -> bool:
        """Whether gradients or another precision are asked for. The package searches in float32
        whatever it is given."""
        if differentiated(x, self.module.parameters()):
            return True
        books = self.books(self.module)
        plain = x.dtype == books[0].dtype == torch.float32
        return not plain or torch.is_autocast_enabled(x.device.type)
