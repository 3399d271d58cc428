"""The vocoder as drop-in modules: the reference's constructors and state dicts."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from .. import reference
from ..operators import refuse_transforms, run
from ..preparable import Preparable, Structure
from ..reference.checks import require_channels, require_lengths, require_mel
from ..reference.vocoder.addends import Addends
from .functional import mrf
from .plan import KNOWN_FORWARDS, Plan, Prepared, plan_of_blocks, plan_of_generator
from .shapes import with_addends


class Planned(Preparable):
    """What runs as one operator where the modules inside are HiFi-GAN's own."""

    _prepared: Prepared | None = None
    _plan: Plan | None = None
    _structure: Structure | None = None

    def _make_plan(self) -> Plan:
        raise NotImplementedError

    def _current_plan(self) -> Plan:
        """The plan, made anew where the modules inside have changed."""
        if torch.compiler.is_compiling():  # which watches modules itself
            return self._make_plan()
        if self._plan is None or self._structure is None or not self._structure.unchanged(self):
            self._plan, self._structure = self._make_plan(), Structure(self)
        return self._plan

    def _run(
        self, plan: Plan, name: str, x: Tensor, *shape: Any, addends: Sequence[Tensor] = ()
    ) -> Tensor:
        """Call the operator with the weights of now, or with those prepared from them."""
        ready = None if self._prepared is None else self._current()
        if ready is None:
            return run(plan.operator, name, x, [*plan.tensors(), *addends], None, *shape)
        if addends:
            refuse_transforms(plan.operator.name, *addends)
            addends = [addend.detach() for addend in addends]
        return run(plan.operator, name, x, [*ready.tensors, *addends], ready.backend, *shape)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_plan": None, "_structure": None}  # a copy makes its own

    def _drop(self) -> None:
        super()._drop()
        self._plan = self._structure = None

    @torch.no_grad()
    def prepare(self) -> Self:
        """As `HiFiGANVocoder.prepare`, for use in another generator; the same bits as before, on a
        CPU from `vocoder.ops.MANY_ROWS` rows of a batch on."""
        self._require_preparable()
        return self._keep(self._current_plan().prepare())


class ResBlock(Planned, reference.ResBlock):
    __doc__ = reference.ResBlock.__doc__

    def _make_plan(self) -> Plan:
        return plan_of_blocks([self])

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) -> (B, channels, T); see `functional.mrf`."""
        plan = self._current_plan()
        if not plan.fusible:
            return super().forward(x)
        require_channels("x", x, self.channels)
        return self._run(plan, "x", x, plan.spec)


KNOWN_FORWARDS.append(ResBlock.forward)


class MRF(Planned, reference.MRF):
    __doc__ = reference.MRF.__doc__

    resblock_class = ResBlock

    def _make_plan(self) -> Plan:
        return plan_of_blocks(list(self.resblocks))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) -> (B, channels, T); see `functional.mrf`."""
        plan = self._current_plan()
        if not plan.fusible:
            return super().forward(x)
        first: Any = self.resblocks[0]
        require_channels("x", x, first.channels)
        return self._run(plan, "x", x, plan.spec)


class HiFiGANVocoder(Planned, reference.HiFiGANVocoder):
    __doc__ = reference.HiFiGANVocoder.__doc__

    resblock_class = ResBlock

    def _make_plan(self) -> Plan:
        return plan_of_generator(self)

    def prepare(self) -> Self:
        """Compute once what generating derives from the weights: their values if normed, in the
        order in which the backend that runs here reads them.

        `train()`, `load_state_dict()` and `to()` of this module, or one around it, drop what was
        prepared. Where weights have changed otherwise, or modules inside were replaced or hooked,
        it is not used, nor where weights were moved to shared memory, as sending a module to
        another process does: prepare it there. Only writes into memory through `.data`, or to
        weights made in inference mode, are not noticed, and compiled programs keep what there was
        when they were traced. No gradient passes a prepared model. For half precision,
        `.to(torch.bfloat16)` first.

        Audio has the same bits as before. On a CPU that is so from
        `vocoder.generator.MANY_FRAMES` frames of a batch on, or of an item with `lengths`: fewer
        run in torch's own layout until they are prepared, which may round differently. Either way
        they are as near to the exact result as the reference is: at most 3 dB worse, in float32
        and, blocks on an input of autocast's dtype, under autocast.

        Raises:
            RuntimeError: the module is in training mode, or inner modules were replaced or hooked.
            ValueError: a weight is not finite.
            BackendUnavailableError: MUOMNI_FAST_BACKEND=triton, and the kernels cannot run.
        """
        return super().prepare()

    def forward(
        self,
        mel: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        addends: Addends | None = None,
    ) -> Tensor:
        """Generate audio, in [-1, 1] unless `final` is None, in one operator call.

        Args:
            mel: (B, n_mels, T), log-mel frames, in the dtype of the weights.
            lengths: (B,) integers 0 to T, frames of each item; None if all have T. An item is then
                generated as if it were alone, and zeros follow its end: one call for all.
            addends: what is added to the result of `conv_pre`, (B, C, 1) or (B, C, T), and to that
                of each upsampling, (B, C, 1) or (B, C, rows); as in
                `reference.HiFiGANVocoder.forward`. Gradients reach them where nothing is prepared.

        Returns:
            (B, T * hop_length), the dtype of `mel`, or autocast's. Float32 products are TF32's
            where `torch.backends.cudnn.conv.fp32_precision` (or the older `cudnn.allow_tf32`) says
            so; sums are float32. Gradients are the same bits every time.

        Raises:
            TypeError: `mel` is not floating point, is float8, or has another dtype than the
                weights or an addend; `lengths` are not integers.
            ValueError: the shape is not (B, n_mels, T >= 1); `lengths` or an addend do not fit;
                devices differ.
            NotImplementedError: forward-mode differentiation, or `torch.func` gradients.
            BackendUnavailableError: MUOMNI_FAST_BACKEND=triton, and the kernels cannot run.
            RuntimeError: a second derivative, or weights were prepared for another backend.
        """
        require_mel(mel, self.n_mels)
        if lengths is not None:
            lengths = require_lengths(lengths, mel)
        plan = self._current_plan()
        if not plan.fusible:
            return super().forward(mel, lengths, addends)
        if addends is None:
            return self._run(plan, "mel", mel, lengths, plan.spec)
        given = {i: a for i, a in enumerate(self._require_addends(addends, mel)) if a is not None}
        spec = with_addends(plan.spec, [*given])
        return self._run(plan, "mel", mel, lengths, spec, addends=[*given.values()])

    def _mean(self, level: int, x: Tensor) -> Tensor:
        return mrf(x, self._resblocks(level))


class NeuralVocoder(reference.NeuralVocoder):
    __doc__ = reference.NeuralVocoder.__doc__

    generator_class = HiFiGANVocoder

    def prepare(self) -> Self:
        """Prepare the generator inside, if there is one; see `HiFiGANVocoder.prepare`."""
        if isinstance(self.vocoder, HiFiGANVocoder):
            self.vocoder.prepare()
        return self
