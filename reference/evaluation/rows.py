"""The rows of the table: ways to make a clip's audio."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from ..codec import SpeechCodec
from ..talker.text import pieces
from ..training.data import HeldOut
from ..training.transcripts import transcript
from ..values import require_int
from ..vocoder.griffin_lim import GriffinLimVocoder
from .refused import Refused
from .subject import Subject

LONGEST = 2.0  # times the original: where speech that does not end by itself is cut


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


def through_the_codec(subject: Subject, codebooks: Sequence[int] = ()) -> Iterator[Row]:
    """The whole way: audio, codes, audio; and with only the first codebooks, through Griffin-Lim.

    Raises:
        ValueError: a number of codebooks is out of range, or there is no quantizer.
    """
    if codebooks and not subject.codecs:
        raise ValueError("--codebooks: expected a quantizer, rvq.json, whose codebooks they are")
    for number in dict.fromkeys(codebooks):
        codec = subject.codecs["Griffin-Lim"]
        require_int("--codebooks", number, 1, codec.rvq.n_codebooks)
        yield Row(
            f"codec, {number} codebooks + Griffin-Lim",
            functools.partial(_coded, codec, n_codebooks=number),
        )
    for vocoder, codec in subject.codecs.items():
        yield Row(f"codec + {vocoder}", functools.partial(_coded, codec))


def _coded(codec: SpeechCodec, held: HeldOut, n_codebooks: int | None = None) -> Tensor:
    codes = codec.encode(held.audio[None], n_codebooks=n_codebooks)
    return codec.decode(codes, length=len(held.audio))[0]


def from_the_text(subject: Subject) -> Iterator[Row]:
    """Speech of a clip's words alone, in its speaker's voice if the Talker knows it."""
    for vocoder, codec in subject.codecs.items():
        if codec.talker is not None:
            said = functools.partial(_said, codec)
            yield Row(f"Talker + {vocoder}", said, follows_original=False)


def _said(codec: SpeechCodec, held: HeldOut) -> Tensor:
    assert codec.talker is not None
    text = transcript(held.clip)
    if text is None:
        raise Refused("no words to say")
    try:
        pieces("text", text, codec.talker.max_text)
    except ValueError as error:
        raise Refused(str(error)) from error
    speaker = held.clip.speaker if held.clip.speaker in codec.talker.speakers else None
    step = codec.frames_per_code * codec.config.hop_length  # samples
    most = math.ceil(LONGEST * len(held.audio) / step)
    said = codec.speak(text, speaker, max_frames=most)
    if not len(said):
        raise Refused("nothing was said")
    return said


def rows_of(subject: Subject, codebooks: Sequence[int] = ()) -> list[Row]:
    """All rows that the models there are can make, in the table's order.

    Args:
        subject: the models.
        codebooks: numbers of codebooks, each for a row more.

    Raises:
        ValueError: one is out of range, or there is no quantizer.
    """
    return [
        *from_the_recording(subject),
        *from_the_mel(subject),
        *through_the_codec(subject, codebooks),
        *from_the_text(subject),
    ]
