"""The residual vector quantizer as a module: weights, and the functions of `functional` on them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import accept_wrapped_names, require_finite
from ..values import (
    MOST_CODEBOOKS,
    MOST_PARAMETERS,
    require_bool,
    require_int,
    require_parameters,
)
from .beam import MOST_BEAM, beam_search
from .checks import without_padding
from .functional import (
    RVQOutput,
    code_sums,
    projected,
    rvq_decode,
    rvq_encode,
    rvq_quantize,
)
from .search import nearest_code


class RVQ(nn.Module):
    """Residual vector quantizer of mel frames (SoundStream, algorithm 1).

    Args:
        n_codebooks: 1 to 256, each for what the one before leaves.
        codebook_size: codewords of each, at least 2.
        codebook_dim: their dimension.
        n_mels: dimension of a frame.
        bias: whether the projections have one.
        projections: False leaves them out, for which `n_mels` must equal `codebook_dim`.

    Raises:
        TypeError: a size is not an integer, or a switch not True or False.
        ValueError: a size is out of range, all weights together would be more than 2^30, or
            projections are needed but off.
    """

    # What a subclass with faster kernels replaces.
    code_sums = staticmethod(code_sums)
    nearest_code = staticmethod(nearest_code)

    def __init__(
        self,
        n_codebooks: int = 2,
        codebook_size: int = 128,
        codebook_dim: int = 64,
        n_mels: int = 128,
        bias: bool = False,
        projections: bool = True,
    ) -> None:
        super().__init__()
        n_codebooks = require_int("n_codebooks", n_codebooks, 1, MOST_CODEBOOKS)
        codebook_size = require_int("codebook_size", codebook_size, 2, MOST_PARAMETERS)
        codebook_dim = require_int("codebook_dim", codebook_dim, 1, MOST_PARAMETERS)
        n_mels = require_int("n_mels", n_mels, 1, MOST_PARAMETERS)
        require_bool("bias", bias)
        require_bool("projections", projections)
        require_parameters(
            f"n_codebooks = {n_codebooks}, codebook_size = {codebook_size}, "
            f"codebook_dim = {codebook_dim}, n_mels = {n_mels}",
            n_codebooks * codebook_size * codebook_dim + 2 * projections * codebook_dim * n_mels,
        )
        if not projections and n_mels != codebook_dim:
            raise ValueError(
                f"projections=False: expected n_mels == codebook_dim, got {n_mels}, {codebook_dim}"
            )
        self.n_codebooks = n_codebooks
        self.codebook_size = codebook_size
        self.codebook_dim = codebook_dim
        self.n_mels = n_mels
        self.bias = bias
        self.projections = projections
        self.proj_in = nn.Linear(n_mels, codebook_dim, bias) if projections else None
        self.proj_out = nn.Linear(codebook_dim, n_mels, bias) if projections else None
        self.codebooks = nn.ModuleList(
            nn.Embedding(codebook_size, codebook_dim) for _ in range(n_codebooks)
        )
        for weight in self.codebook_weights():
            nn.init.normal_(weight, std=codebook_dim**-0.5)
        self.register_load_state_dict_pre_hook(accept_wrapped_names)
        self.register_load_state_dict_pre_hook(require_finite)

    @property
    def config(self) -> dict[str, int | bool]:
        """The constructor's arguments: what a checkpoint saves."""
        names = ("n_codebooks", "codebook_size", "codebook_dim", "n_mels", "bias", "projections")
        return {name: getattr(self, name) for name in names}

    def codebook_weights(self) -> list[Any]:
        """The codewords of each codebook, (codebook_size, codebook_dim): tensors, parameters unless
        the codebooks are parametrised or those of a replica."""
        return [codebook.weight for codebook in self.codebooks]

    def stacked_codebooks(self) -> Tensor:
        """All codewords, (n_codebooks, codebook_size, codebook_dim)."""
        weights: list[Any] = [codebook.weight for codebook in self.codebooks]
        return torch.stack(weights)

    def _projection(self, which: str) -> tuple[Tensor | None, Tensor | None]:
        layer = getattr(self, which)
        return (None, None) if layer is None else (layer.weight, layer.bias)

    def project(self, mel: Tensor) -> Tensor:
        """What the first codebook quantizes: (..., n_mels) -> (..., codebook_dim) float32; on a CPU
        each number is the exact one, rounded once."""
        return projected(mel, self.stacked_codebooks(), *self._projection("proj_in"))

    def encode(
        self,
        mel: Tensor,
        precision: str = "exact",
        check_finite: bool = False,
        n_codebooks: int | None = None,
        beam: int = 1,
    ) -> Tensor:
        """Codes of mel frames: (..., n_mels) -> (..., n_codebooks) int64; see `rvq_encode`.

        Args:
            mel, precision, check_finite: as there.
            n_codebooks: stop after so many; None is all. What is left out changes no code before,
                unless there is a beam.
            beam: paths through the codebooks to keep, 1 to 1024. With more than one the error is at
                most greedy's, and mostly less; codes then are not certified (`beam.beam_search`).
        """
        if type(beam) is not int or beam != 1:
            beam = require_int("beam", beam, 1, MOST_BEAM)
        if n_codebooks is not None:
            require_int("n_codebooks", n_codebooks, 1, self.n_codebooks)
        codes = rvq_encode(
            mel,
            self.stacked_codebooks()[:n_codebooks],
            *self._projection("proj_in"),
            precision=precision,
            check_finite=check_finite,
        )
        return codes if beam == 1 else self._by_beam(mel, codes, beam)

    def _by_beam(self, mel: Tensor, greedy: Tensor, beam: int) -> Tensor:
        """Codes (..., k) by a beam, from the greedy ones."""
        with torch.no_grad():
            z = self.project(mel)
        books = self.stacked_codebooks()[: greedy.shape[-1]].detach()
        return beam_search(z, books.to(z.dtype), greedy, beam)

    def decode(self, codes: Tensor, padding_code: int | None = None) -> Tensor:
        """Mel frames of codes: (..., k <= n_codebooks) -> (..., n_mels); see `rvq_decode`.

        Args:
            codes: (..., k) integers.
            padding_code: no code, -1 for example; where it stands in all codebooks, the frame is
                zero. None: it is out of range, as any other number that is no code.

        Raises:
            ValueError: `padding_code` is a code, or stands in some codebooks of a frame only (on a
                GPU that is a code out of range, see `raise_if_errors`).
        """
        if padding_code is None:
            return self._decode(codes)
        codes, padded = without_padding(codes, padding_code, self.codebook_size)
        return self._decode(codes).masked_fill(padded[..., None], 0)

    def _decode(self, codes: Tensor) -> Tensor:
        return rvq_decode(codes, self.stacked_codebooks(), *self._projection("proj_out"))

    def forward(
        self,
        mel: Tensor,
        n_codebooks: int | Tensor | Sequence[int] | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> RVQOutput:
        """Quantize for training: (..., n_mels) -> RVQOutput; see `rvq_quantize`."""
        return rvq_quantize(
            mel,
            self.stacked_codebooks(),
            *self._projection("proj_in"),
            *self._projection("proj_out"),
            n_codebooks=n_codebooks,
            lengths=lengths,
        )
