"""The join of codec and vocoder: audio -> codes -> audio, with every setting checked once."""

import itertools
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, overload

import torch
from torch import Tensor, nn

from .audio.mel import (
    MelConfig,
    log_mel,
    pool_frames,
    pooled_width,
    require_pooling,
    require_same_mel,
    unpool_frames,
)
from .checkpoint import restore
from .checks import accept_wrapped_names, mono, require_hop, require_n_mels, require_tensor
from .reading import blaming
from .rvq.checks import without_padding
from .rvq.digest import quantizer_digest
from .rvq.quantizer import RVQ
from .talker.checks import require_talker
from .talker.model import Talker
from .talker.speaking import codes_of, mels_of
from .values import MOST_HOP, require_bool, require_int
from .vocoder.griffin_lim import GriffinLimVocoder
from .vocoder.hifigan import HiFiGANVocoder
from .vocoder.neural import NeuralVocoder

log = logging.getLogger(__name__)

OPTIONS = "temperature", "top_k", "seed", "max_frames"  # of `Talker.generate`, for `speak`


class Quantizer(Protocol):
    """What the functions here need of a quantizer: `RVQ`, or a peer it is measured against."""

    n_codebooks: int
    codebook_size: int

    def encode(self, mel: Tensor) -> Tensor:
        """(..., n_mels) -> (..., n_codebooks) int64."""

    def decode(self, codes: Tensor) -> Tensor:
        """(..., n_codebooks) -> (..., n_mels)."""


def encode_mel(
    rvq: Quantizer, mel: Tensor, frames_per_code: int = 1, pooling: str = "mean"
) -> Tensor:
    """Codes of log-mels: (..., n_mels, T) -> (..., ceil(T / frames_per_code), Q) int64."""
    return rvq.encode(pool_frames(mel.transpose(-1, -2), frames_per_code, pooling))


def decode_mel(
    rvq: Quantizer, codes: Tensor, frames_per_code: int = 1, pooling: str = "mean"
) -> Tensor:
    """Log-mels of codes: (..., S, k) -> (..., n_mels, S * frames_per_code)."""
    return unpool_frames(rvq.decode(codes), frames_per_code, pooling).transpose(-1, -2)


def require_pooled(rvq_n_mels: int, mel_n_mels: int, frames_per_code: int, pooling: str) -> None:
    """Raise ValueError unless a quantizer takes what `pool_frames` makes of a mel's frames."""
    width = pooled_width(mel_n_mels, frames_per_code, pooling)
    if pooling == "mean":
        require_n_mels(rvq_n_mels, width, "the quantizer")
    elif rvq_n_mels != width:
        raise ValueError(
            f"the quantizer has n_mels = {rvq_n_mels}, but frames_per_code = {frames_per_code} "
            f"stacked frames of a mel with n_mels = {mel_n_mels} have {width}"
        )


class SpeechCodec(nn.Module):
    """A quantizer and a vocoder that share one `MelConfig`.

    Args:
        rvq: mel frames <-> codes.
        vocoder: maps (B, n_mels, T), and `lengths` (B,) if given, to (B, T * hop_length).
        config: the mel settings both were trained with.
        frames_per_code: mel frames that share a code: 5 turn 62.5 frames/s into 12.5 codes/s.
        pooling: how they do (`pool_frames`): "mean", or "stack", for which the quantizer's `n_mels`
            is the mel's times `frames_per_code`.
        talker: trained on the codes of `rvq`, for `speak`.

    Raises:
        TypeError: `frames_per_code` is not an integer, or `talker` no Talker.
        ValueError: it is out of range, or `pooling` is unknown; the parts disagree on a mel
            setting, the number of bands or the hop, or the Talker has learned other codes; names
            both values.
    """

    # What a subclass with faster kernels replaces.
    quantizer_class: ClassVar[type[RVQ]] = RVQ
    vocoder_class: ClassVar[type[NeuralVocoder]] = NeuralVocoder
    talker_class: ClassVar[type[Talker]] = Talker

    def __init__(
        self,
        rvq: RVQ,
        vocoder: nn.Module,
        config: MelConfig,
        frames_per_code: int = 1,
        pooling: str = "mean",
        talker: Talker | None = None,
    ) -> None:
        super().__init__()
        self.frames_per_code = require_int("frames_per_code", frames_per_code, 1, MOST_HOP)
        self.pooling = require_pooling(pooling)
        require_pooled(rvq.n_mels, config.n_mels, self.frames_per_code, pooling)
        if isinstance(vocoder, HiFiGANVocoder):
            require_hop(vocoder.hop_length, config.hop_length)
            require_n_mels(vocoder.n_mels, config.n_mels, "the vocoder")
        elif isinstance(vocoder, (GriffinLimVocoder, NeuralVocoder)):
            require_same_mel(vocoder.config, config, "vocoder != codec")
        if talker is not None:
            require_talker(talker, rvq, self.frames_per_code, pooling)
        self.rvq = rvq
        self.vocoder = vocoder
        self.talker = talker
        self.config = config
        self.register_load_state_dict_pre_hook(accept_wrapped_names)

    @classmethod
    def from_checkpoints(
        cls,
        rvq: str | Path,
        vocoder: str | Path | None = None,
        talker: str | Path | None = None,
    ) -> Self:
        """Load what training saved: `checkpoints/rvq.json`, `vocoder.json` and `talker.json` in its
        run folder.

        Args:
            rvq: the quantizer's `.json`, which also holds the mel settings, `frames_per_code` and
                `pooling`; one without the last was trained on means.
            vocoder: the vocoder's; None chooses Griffin-Lim and logs it. One that was trained on
                mels decoded from another quantizer's codes is logged too.
            talker: the Talker's, for `speak`; None is without.

        Raises:
            CheckpointError: a checkpoint is missing, damaged or of another kind, they were trained
                with different mel settings, or the Talker with another quantizer; names each.
        """
        quantizer, saved = restore(cls.quantizer_class, rvq, "rvq")
        with blaming(rvq):
            neural = cls.vocoder_class(vocoder, saved.mel, model=rvq)
            per_code = saved.extra.get("frames_per_code", 1)
            pooling = saved.extra.get("pooling", "mean")
            codec = cls(quantizer, neural, saved.mel, per_code, pooling)
        own = neural.decoded_mels
        if own is not None and own != quantizer_digest(quantizer, per_code, pooling):
            log.warning("%s: was trained on mels of another quantizer than %s", vocoder, rvq)
        if talker is not None:
            speaker, saved = restore(cls.talker_class, talker, "talker")
            with blaming(talker):
                require_same_mel(codec.config, saved.mel, f"{rvq} != {talker}")
                codec = cls(quantizer, neural, codec.config, per_code, pooling, speaker)
        return codec.eval()

    @torch.no_grad()
    def encode(self, audio: Tensor, n_codebooks: int | None = None, beam: int = 1) -> Tensor:
        """Codes of audio at `config.sample_rate`.

        Args:
            audio: (B, L) or (B, 1, L); of more channels, their mean.
            n_codebooks, beam: as `RVQ.encode` takes them.

        Returns:
            (B, S, n_codebooks) int64, S codes per clip.

        Raises:
            TypeError: `audio` is not a float32 or float64 tensor; an option is not an integer.
            ValueError: the shape is not (B, L >= 1) or (B, 1, L >= 1), or is that of one clip with
                its channels last; an option is out of range.
        """
        audio = mono("audio", audio)
        mel = log_mel(audio, self.config).transpose(-1, -2)
        rows = pool_frames(mel, self.frames_per_code, self.pooling)
        return self.rvq.encode(rows, n_codebooks=n_codebooks, beam=beam)

    @torch.no_grad()
    def decode(
        self, codes: Tensor, length: int | None = None, padding_code: int | None = None
    ) -> Tensor:
        """Audio of codes.

        Args:
            codes: (B, S, k) integers, 1 <= k <= n_codebooks.
            length: samples wanted; more than there are gives all there are.
            padding_code: no code, -1 for example; where it stands in all codebooks, there is
                silence. At an item's end it changes no other sample of the item. On a GPU this
                waits for the codes.

        Returns:
            (B, S * frames_per_code * hop_length).

        Raises:
            TypeError: `codes` is not an integer tensor.
            ValueError: the shape is not (B, S, 1 to n_codebooks); `length` is negative;
                `padding_code` is a code, or stands in some codebooks of a step only.
            IndexError: a code is out of range (on a GPU see `raise_if_errors`).
        """
        require_tensor("codes", codes)
        if codes.ndim != 3:
            raise ValueError(f"codes: expected (B, S, k), got {tuple(codes.shape)}")
        if length is not None:
            length = require_int("length", length, 0)
        if padding_code is None:
            audio = self._audio(codes)
        else:
            audio = self._audio(*without_padding(codes, padding_code, self.rvq.codebook_size))
        return audio if length is None else audio[:, :length]

    @overload
    def speak(
        self,
        text: str,
        speaker: str | None = None,
        stream: Literal[False] = False,
        **options: Any,
    ) -> Tensor: ...

    @overload
    def speak(
        self, text: str, speaker: str | None = None, *, stream: Literal[True], **options: Any
    ) -> Iterator[Tensor]: ...

    @torch.no_grad()
    def speak(
        self, text: str, speaker: str | None = None, stream: bool = False, **options: Any
    ) -> Tensor | Iterator[Tensor]:
        """Say a text.

        Args:
            text: in any length; see `Talker.generate`.
            speaker: a name that the Talker knows, or None.
            stream: yield audio while codes come, of which the pieces joined are, within rounding,
                what is returned otherwise. HiFi-GAN only: Griffin-Lim needs all of a mel.
            options: `temperature`, `top_k`, `seed` and `max_frames` of `Talker.generate`. A text
                that is split is drawn part by part, not side by side as there: above temperature 0
                one seed says it otherwise.

        Returns:
            (L,) audio at `config.sample_rate`; streaming, an iterator of parts of it.

        Raises:
            RuntimeError: there is no Talker.
            TypeError, ValueError: as `Talker.generate`; `stream` without HiFi-GAN; an option that
                there is not.
        """
        if self.talker is None:
            raise RuntimeError("speak: this codec has no Talker; give SpeechCodec(..., talker=)")
        # What is inside a NeuralVocoder.
        voices: Any = getattr(self.vocoder, "vocoder", self.vocoder)
        if require_bool("stream", stream) and not isinstance(voices, HiFiGANVocoder):
            raise ValueError(
                f"stream: expected a HiFiGANVocoder, got {type(voices).__name__}, which needs all "
                "of a mel at once"
            )
        for name in options.keys() - OPTIONS:
            raise TypeError(f"speak: expected {', '.join(OPTIONS)}, got {name!r}")
        steps = self.talker.steps(**options)
        frames = codes_of(steps, text, speaker)
        if stream:
            first = next(frames, None)  # what is wrong with the text shows now
            frames = frames if first is None else itertools.chain([first], frames)
            parts = voices.stream(mels_of(self, frames))
            return (part[0] for part in parts)
        none = torch.empty(
            1, 0, self.rvq.n_codebooks, dtype=torch.int64, device=steps.random.device
        )
        return self._audio(torch.cat([none, *frames], 1))[0]

    def _audio(self, codes: Tensor, padded: Tensor | None = None) -> Tensor:
        """Audio of codes (B, S, k), silent where steps (B, S) are `padded`."""
        samples = self.frames_per_code * self.config.hop_length  # of a step
        mel = self.rvq.decode(codes)  # (B, S, rvq.n_mels)
        if mel.shape[1] == 0:
            return mel.new_empty(mel.shape[0], 0)
        if padded is None:
            return self.vocoder(self._frames(mel))
        steps = torch.arange(1, mel.shape[1] + 1, device=mel.device)
        ends = (steps * ~padded).amax(1)  # (B,) steps before the padding at the end
        # Past the end the last step goes on, as interpolation has it of an item alone.
        last = mel.gather(1, (ends - 1).clamp(min=0)[:, None, None].expand(-1, 1, mel.shape[2]))
        mel = mel.masked_fill(padded[..., None], math.log(self.config.log_floor))
        mel = torch.where((steps > ends[:, None])[..., None], last, mel)
        audio = self.vocoder(self._frames(mel), lengths=ends * self.frames_per_code)
        return audio.masked_fill(padded.repeat_interleave(samples, 1), 0)

    def _frames(self, mel: Tensor) -> Tensor:
        """What the vocoder takes: (B, S, rvq.n_mels) -> (B, n_mels, S * frames_per_code)."""
        return unpool_frames(mel, self.frames_per_code, self.pooling).transpose(-1, -2)
