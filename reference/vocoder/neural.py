"""HiFi-GAN from a checkpoint, or Griffin-Lim where none is given."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..audio.mel import MelConfig, require_same_mel
from ..checkpoint import restore
from ..checks import require_hop, require_n_mels
from ..reading import blaming
from .griffin_lim import GriffinLimVocoder
from .hifigan import HiFiGANVocoder
from .streaming import one_clip

log = logging.getLogger(__name__)


class NeuralVocoder(nn.Module):
    """Mel to audio: HiFi-GAN when a checkpoint is given, Griffin-Lim when none is.

    Never random weights: a checkpoint that is given and does not load is an error. `.vocoder` is
    the `HiFiGANVocoder` or `GriffinLimVocoder` inside, with all it has.

    Args:
        checkpoint: `.json` of a vocoder saved by training; None chooses Griffin-Lim and logs it.
        config: settings of the mels it will be given; None takes the checkpoint's, or the default.
        model: whose vocoder it is, to be named in the log where there is no checkpoint.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of another kind.
        ValueError: it was trained with other mel settings than `config`; names each.
    """

    generator_class: ClassVar[type[HiFiGANVocoder]] = HiFiGANVocoder
    # Digest of the quantizer whose decoded mels the checkpoint was trained on, where it says so.
    decoded_mels: str | None = None

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        config: MelConfig | None = None,
        *,
        model: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.vocoder: HiFiGANVocoder | GriffinLimVocoder
        if checkpoint is None:
            log.warning("%s: no vocoder given: using Griffin-Lim", model or "NeuralVocoder")
            self.config = config or MelConfig()
            self.vocoder = GriffinLimVocoder(self.config)
            return
        generator, saved = restore(self.generator_class, checkpoint, "vocoder")
        if config is not None:
            require_same_mel(config, saved.mel, f"asked for != {checkpoint}")
        self.config, self.decoded_mels = saved.mel, saved.extra.get("decoded_mels")
        with blaming(checkpoint):
            require_hop(generator.hop_length, self.config.hop_length)
            require_n_mels(generator.n_mels, self.config.n_mels, "the vocoder")
            self.vocoder = generator.fold_weight_norm()

    @torch.no_grad()
    def forward(self, mel: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """(B, n_mels, T) log-mels -> (B, T * hop_length) audio; `lengths` (B,), frames of each
        item, as in `HiFiGANVocoder`."""
        return self.vocoder(mel, lengths)

    def mel_to_audio(self, mel: Tensor | np.ndarray) -> Tensor:
        """One clip: (n_mels, T) -> (T * hop_length,)."""
        return one_clip(self, mel)
