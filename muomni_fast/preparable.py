"""What modules that can be prepared for inference share."""

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

from .reference.checks import refuse_in_capture


class Preparable(nn.Module):
    """Drops what `prepare` computed from the weights where they may change."""

    _prepared: Any = None

    def _require_preparable(self) -> None:
        if self.training:
            raise RuntimeError("prepare: expected eval mode, got training mode; call eval() first")
        device = next(self.parameters()).device
        refuse_in_capture(device, "prepare: waits for the GPU; call it before the capture")

    def train(self, mode: bool = True) -> Self:
        """As torch's; training drops what `prepare` computed."""
        if mode:
            self._prepared = None
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._prepared = None  # also when a parent module loads
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._prepared = None  # another device or dtype
        return super()._apply(fn, recurse)
