"""The rows of the table: ways to make a clip's audio."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from ..codec import SpeechCodec
from ..training.data import HeldOut
from ..vocoder.griffin_lim import GriffinLimVocoder
from .subject import Subject


@dataclasses.dataclass(frozen=True)
class Row:
    """A way to make a clip's audio.

    Attributes:
        name: in the table.
        make: from the clip, its audio (L,) and log-mel (n_mels, T) at the models' rate, to audio
            at that rate, as long as the original if it follows it. None is the original as it is.
        follows_original: whether everything happens when it does in the original. Where it does
            not, as in speech from text, metrics that compare are left out.
    """

    name: str
    make: Callable[[HeldOut], Tensor] | None
    follows_original: bool = True


def from_the_recording(subject: Subject) -> Iterator[Row]:
    """The original: what no row can be expected to beat."""
    yield Row("original", None)


def from_the_mel(subject: Subject) -> Iterator[Row]:
    """Vocoders given the original's own log-mel: what a perfect codec would sound like."""
    griffin_lim = GriffinLimVocoder(subject.mel)
    yield Row("Griffin-Lim", functools.partial(_vocoded, griffin_lim))
    if subject.hifigan is not None:
        yield Row("HiFi-GAN", functools.partial(_vocoded, subject.hifigan))


def _vocoded(vocoder: nn.Module, held: HeldOut) -> Tensor:
    return vocoder(held.mel[None])[0, : len(held.audio)]


def through_the_codec(subject: Subject) -> Iterator[Row]:
    """The whole way: audio, codes, audio."""
    for vocoder, codec in subject.codecs.items():
        yield Row(f"codec + {vocoder}", functools.partial(_coded, codec))


def _coded(codec: SpeechCodec, held: HeldOut) -> Tensor:
    return codec.decode(codec.encode(held.audio[None]), length=len(held.audio))[0]


# In the table's order. Speech from text is one more function here, whose row makes audio of
# `held.clip.text` and does not follow the original.
SOURCES: tuple[Callable[[Subject], Iterator[Row]], ...] = (
    from_the_recording,
    from_the_mel,
    through_the_codec,
)


def rows_of(subject: Subject) -> list[Row]:
    """All rows that the models there are can make."""
    return [row for source in SOURCES for row in source(subject)]
