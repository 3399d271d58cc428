"""Drop-in modules: the reference's constructors and state dicts, run by `functional`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import functional, fused, ops, reference
from .counters import meet
from .reference.checks import refuse_in_capture, require_lengths, require_mel
from .vocoder_ops import Packed


@dataclasses.dataclass
class PreparedRVQ:
    """What inference needs of a quantizer's weights, computed once.

    Attributes:
        codebooks: (Q, K, D), all stages in one tensor.
        half_norms: (Q, K) float32, ||c||^2 / 2.
        tables: (Q, K, n_mels), the codewords already projected back, the first stage's with the
            bias.
    """

    codebooks: Tensor
    half_norms: Tensor
    tables: Tensor


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


class RVQ(Preparable, reference.RVQ):
    __doc__ = reference.RVQ.__doc__

    _encode = staticmethod(functional.rvq_encode)
    _decode = staticmethod(functional.rvq_decode)
    _quantize = staticmethod(functional.rvq_quantize)
    code_sums = staticmethod(functional.code_sums)
    _prepared: PreparedRVQ | None = None

    @torch.no_grad()
    def prepare(self) -> Self:
        """Compute once what encoding and decoding derive from the weights: stacked codebooks, their
        norms, and codewords already projected back, so that decoding only gathers and adds.

        Decoded frames then differ by rounding (the projection is applied before the sum). Nothing
        watches the weights: `train()`, `load_state_dict()` and `to()` drop what was prepared, other
        changes need another call.

        Raises:
            RuntimeError: the module is in training mode.
            ValueError: a weight is not finite.
        """
        self._require_preparable()
        codebooks = self.stacked_codebooks()
        tables = codebooks.double()
        if self.proj_out is not None:
            tables = F.linear(tables, self.proj_out.weight.double())
            if self.proj_out.bias is not None:
                tables[0] += self.proj_out.bias.double()  # the first stage is always decoded
        tables = tables.to(codebooks.dtype)
        if not tables.isfinite().all():
            raise ValueError("prepare: the codebooks or proj_out are not finite")
        self._prepared = PreparedRVQ(codebooks, ops.half_norms(codebooks.float()), tables)
        return self

    def encode(self, mel: Tensor, precision: str = "exact", check_finite: bool = False) -> Tensor:
        """Codes of mel frames: (..., n_mels) -> (..., n_codebooks) int64; see
        `functional.rvq_encode`."""
        if self._prepared is None:
            return super().encode(mel, precision, check_finite)
        return functional.rvq_encode(
            mel,
            self._prepared.codebooks,
            *self._projection("proj_in"),
            precision=precision,
            check_finite=check_finite,
            half_norms=self._prepared.half_norms,
        )

    def decode(self, codes: Tensor) -> Tensor:
        """Mel frames of codes: (..., k <= n_codebooks) -> (..., n_mels); see
        `functional.rvq_decode`."""
        if self._prepared is None:
            return super().decode(codes)
        return functional.rvq_decode(codes, self._prepared.tables)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        module = super()._apply(fn, recurse)
        meet(self.codebook_weights()[0].device)
        return module


class PreparableBlocks(Preparable):
    """Residual blocks that run as one operator."""

    _prepared: Packed | None = None

    def _blocks(self) -> list[nn.Module]:
        raise NotImplementedError

    @torch.no_grad()
    def prepare(self) -> Self:
        """As `HiFiGANVocoder.prepare`, for use in another generator; the same bits as before, on a
        CPU from `vocoder_ops.MANY_ROWS` rows of a batch on."""
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
    _mrf = staticmethod(functional.mrf)

    def _blocks(self) -> list[nn.Module]:
        return list(self.resblocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) -> (B, channels, T); see `functional.mrf`."""
        if self._prepared is None:
            return super().forward(x)
        return fused.run_prepared_blocks(x, self._prepared, self._blocks())


class HiFiGANVocoder(Preparable, reference.HiFiGANVocoder):
    __doc__ = reference.HiFiGANVocoder.__doc__

    resblock_class = ResBlock
    _mrf = staticmethod(functional.mrf)
    _prepared: Packed | None = None

    @torch.no_grad()
    def prepare(self) -> Self:
        """Compute once what generating derives from the weights: their values if normed, in the
        order in which the backend that runs here reads them.

        Nothing watches the weights: `train()`, `load_state_dict()` and `to()` of this module, or
        one around it, drop what was prepared; other changes need another call. No gradient passes a
        prepared model, and hooks on inner modules do not run. For half precision,
        `.to(torch.bfloat16)` first.

        Audio has the same bits as before. On a CPU that is so from `vocoder_ops.MANY_FRAMES` frames
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


class SpeechCodec(reference.SpeechCodec):
    __doc__ = reference.SpeechCodec.__doc__

    quantizer_class = RVQ
    vocoder_class = NeuralVocoder
