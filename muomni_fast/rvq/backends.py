"""What the quantizer's operators call: the functions that every backend has.

A backend is a module: `torch_backend` or `triton_backend`.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Backend(Protocol):
    """N frames, Q codebooks of K codewords of D numbers; all tensors on one device."""

    def encode(
        self,
        mel: Tensor,
        codebooks: Sequence[Tensor],
        table: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        nonfinite: Tensor,
        *,
        exact: bool = True,
        with_sums: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Codes (N, Q) int64; with sums also what each codebook leaves: sums of squares (Q,).

        Args:
            mel: (N, n_mels).
            codebooks: one (Q, K, D), or Q of (K, D).
            table: (Q, 2, K, W), what `kernels.rvq.table.search_table` gives, or None.
            weight, bias: (D, n_mels) and (D,) of the projection, or None.
            nonfinite: one int32, raised by the number of rows with a NaN or an infinity.
            exact: certify codes; otherwise the lowest score may be taken as it is.
            with_sums: also return the sums.
        """

    def decode(
        self,
        codes: Tensor,
        tables: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        invalid: Tensor,
    ) -> Tensor:
        """Frames (N, n_mels) of codes (N, k), or sums of codewords (N, D) without a projection.

        `invalid`, one int32, is raised by the number of codes out of range.
        """

    def code_sums(self, codes: Tensor, rows: Tensor, codebook_size: int) -> Tensor:
        """(N,) int64, (N, D) -> sums of the rows of every code (codebook_size, D) float64."""
