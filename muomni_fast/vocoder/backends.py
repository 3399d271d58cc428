"""What runs the layers of a generator: the functions that every backend has.

A backend is a module: `torch_backend`, `torch_inference` or `triton_backend`. Its activations are
in a layout of its own; a mel, audio and weights come and go as torch has them.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from .shapes import Blocks, Layers, Network, Up

Pair = Sequence[Tensor]  # a convolution's weight and bias, if it has one
Needs = Sequence[bool]
Grads = list[Tensor | None]
# Where the items of a batch end: the frames of each, (B,), and how many rows a frame has by now.
Ends = tuple[Tensor, int] | None
WHOLE: tuple[Tensor | None, int] = None, 1  # the same where all end together


class InferenceBackend(Protocol):
    """The layers without gradients."""

    TAKES_ENDS: bool  # otherwise items that end early are run one by one

    def layers(self, tensors: Sequence[Tensor], network: Network) -> Layers:
        """Weights and biases as torch has them -> as the functions here take them."""

    def pack_blocks(self, tensors: Sequence[Tensor], blocks: Blocks) -> list[Tensor]:
        """The same of one level's residual blocks."""

    def pre(
        self, mel: Tensor, layer: Pair, ends: Ends = None, addend: Tensor | None = None
    ) -> Tensor:
        """The first convolution, of (B, n_mels, T), and an addend, (B, C, 1) or (B, C, T)."""

    def up(
        self, x: Tensor, layer: Pair, shape: Up, ends: Ends = None, addend: Tensor | None = None
    ) -> Tensor:
        """A leaky_relu and a transposed convolution, to `shape.factor` times as many rows, and an
        addend, (B, C, 1) or (B, C, rows)."""

    def mrf(
        self, x: Tensor, tensors: Sequence[Tensor], blocks: Blocks, keep: bool, ends: Ends = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The mean of a level's residual blocks, and what its gradient needs if `keep`."""

    def post(self, x: Tensor, layer: Pair, final: str | None, ends: Ends = None) -> Tensor:
        """A leaky_relu, the last convolution and what is `final`: audio (B, T)."""

    def level(
        self, x: Tensor, tensors: Sequence[Tensor], blocks: Blocks, keep: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """`mrf` of (B, C, T)."""


class PreparingBackend(InferenceBackend, Protocol):
    """One that generates from weights laid out beforehand."""

    def pack(self, tensors: Sequence[Tensor], network: Network) -> list[Tensor]:
        """What `prepare` keeps, and `unpacked` takes."""

    def unpacked(self, tensors: Sequence[Tensor], network: Network) -> Layers:
        """What `pack` gave -> as the other functions take them."""


class Backend(InferenceBackend, Protocol):
    """The layers and their gradients. `needs` says which of a weight's and a bias's to compute."""

    def grad_layers(self, tensors: Sequence[Tensor], network: Network) -> Layers:
        """Weights and biases as torch has them -> as the functions that give gradients take them,
        whose results are as torch has them."""

    def pre_grad(
        self,
        grad: Tensor,
        mel: Tensor,
        layer: Pair,
        need_mel: bool,
        needs: Needs,
        ends: Ends = None,
    ) -> tuple[Tensor | None, Grads]:
        """Gradients of mel, weight and bias."""

    def up_grad(
        self,
        grad: Tensor,
        x: Tensor,
        layer: Pair,
        shape: Up,
        needs: Needs,
        ends: Ends = None,
    ) -> tuple[Tensor, Grads]:
        """Gradients of the input, and of weight and bias."""

    def mrf_grad(
        self,
        grad: Tensor,
        x: Tensor,
        kept: Sequence[Tensor],
        weights: Sequence[Any],
        blocks: Blocks,
        needs: Needs,
        ends: Ends = None,
    ) -> tuple[Tensor, Grads]:
        """Gradients of the input, and of all weights and biases; `weights` of a level as
        `grad_layers` has them."""

    def post_grad(
        self,
        grad: Tensor,
        audio: Tensor,
        x: Tensor,
        layer: Pair,
        final: str | None,
        needs: Needs,
        ends: Ends = None,
    ) -> tuple[Tensor, Grads]:
        """Gradients of the input, and of weight and bias; `final` is "tanh" or None."""

    def addend_grad(self, grad: Tensor, constant: bool, ends: Ends = None) -> Tensor:
        """The gradient of an addend, (B, C, rows) or, where it is `constant`, (B, C, 1)."""

    def level_grad(
        self,
        grad: Tensor,
        x: Tensor,
        kept: Sequence[Tensor],
        tensors: Sequence[Tensor],
        blocks: Blocks,
        needs: Needs,
    ) -> tuple[Tensor, Grads]:
        """`mrf_grad` of `level`."""

    def fake(self, like: Tensor, channels: int, rows: int) -> Tensor:
        """A tensor laid out as activations here; its memory is not written."""

    def fake_kept(self, like: Tensor, channels: int, rows: int, blocks: Blocks) -> list[Any]:
        """Tensors like those `mrf` keeps."""
