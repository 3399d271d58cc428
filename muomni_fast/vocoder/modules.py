"""The vocoder as drop-in modules: the reference's constructors and state dicts."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from .. import reference
from ..preparable import Preparable
from ..reference.checks import require_lengths, require_mel
from . import plan as fused
from .functional import mrf
from .ops import Packed


class PreparableBlocks(Preparable):
    """Residual blocks that run as one operator."""

    _prepared: Packed | None = None

    def _blocks(self) -> list[nn.Module]:
        raise NotImplementedError

    @torch.no_grad()
    def prepare(self) -> Self:
        """As `HiFiGANVocoder.prepare`, for use in another generator; the same bits as before, on a
        CPU from `vocoder.ops.MANY_ROWS` rows of a batch on."""
        self._require_preparable()
        self._prepared = fused.pack_blocks(self._blocks())
        return self


class ResBlock(PreparableBlocks, reference.ResBlock):
    __doc__ = reference.ResBlock.__doc__

    forward = fused.resblock_forward

    def _blocks(self) -> list[nn.Module]:
        return [self]


class MRF(PreparableBlocks, reference.MRF):
    __doc__ = reference.MRF.__doc__

    resblock_class = ResBlock
    _mrf = staticmethod(mrf)

    def _blocks(self) -> list[nn.Module]:
        return list(self.resblocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) -> (B, channels, T); see `mrf`."""
        if self._prepared is None:
            return super().forward(x)
        return fused.run_prepared_blocks(x, self._prepared, self._blocks())


class HiFiGANVocoder(Preparable, reference.HiFiGANVocoder):
    __doc__ = reference.HiFiGANVocoder.__doc__

    resblock_class = ResBlock
    _mrf = staticmethod(mrf)
    _prepared: Packed | None = None

    @torch.no_grad()
    def prepare(self) -> Self:
        """Compute once what generating derives from the weights: their values if normed, in the
        order in which the backend that runs here reads them.

        Nothing watches the weights: `train()`, `load_state_dict()` and `to()` of this module, or
        one around it, drop what was prepared; other changes need another call. No gradient passes a
        prepared model, and hooks on inner modules do not run. For half precision,
        `.to(torch.bfloat16)` first.

        Audio has the same bits as before. On a CPU that is so from `vocoder.ops.MANY_FRAMES` frames
        of a batch on, or of an item with `lengths`: fewer run in torch's own layout until they are
        prepared, which may round differently. Either way they are as near to the exact result as
        the reference is: at most 3 dB worse, in float32 and, blocks on an input of autocast's
        dtype, under autocast.

        Raises:
            RuntimeError: the module is in training mode, or inner modules were replaced or hooked.
            ValueError: a weight is not finite.
            BackendUnavailableError: MUOMNI_FAST_BACKEND=triton, and the kernels cannot run.
        """
        self._require_preparable()
        self._prepared = fused.pack_generator(self)
        return self

    def forward(self, mel: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Generate audio, in [-1, 1], in one operator call.

        Args:
            mel: (B, n_mels, T), log-mel frames, in the dtype of the weights.
            lengths: (B,) integers 0 to T, frames of each item; None if all have T. An item is then
                generated as if it were alone, and zeros follow its end: one call for all.

        Returns:
            (B, T * hop_length), the dtype of `mel`, or autocast's. Float32 products are TF32's
            where `torch.backends.cudnn.conv.fp32_precision` (or the older `cudnn.allow_tf32`) says
            so; sums are float32. Gradients are the same bits every time.

        Raises:
            TypeError: `mel` is not floating point, is float8, or has another dtype than the
                weights; `lengths` are not integers.
            ValueError: the shape is not (B, n_mels, T >= 1); `lengths` do not fit; devices differ.
            NotImplementedError: forward-mode differentiation, or `torch.func` gradients.
            BackendUnavailableError: MUOMNI_FAST_BACKEND=triton, and the kernels cannot run.
            RuntimeError: a second derivative, or weights were prepared for another backend.
        """
        require_mel(mel, self.n_mels)
        if lengths is not None:
            lengths = require_lengths(lengths, mel)
        network = fused.network_of(self)
        if self._prepared is not None:
            return fused.run_prepared_generator(mel, self._prepared, network, lengths)
        if not fused.generator_fusible(self, network):
            return super().forward(mel, lengths)
        return fused.run_generator(mel, fused.tensors_of(self), network, lengths)


class NeuralVocoder(reference.NeuralVocoder):
    __doc__ = reference.NeuralVocoder.__doc__

    generator_class = HiFiGANVocoder
