"""Speech while it is being thought of: frames of codes as they are complete, and their mel."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..audio.mel import unpool_frames
from .checks import speaker_id
from .generation import Steps
from .text import pieces

if TYPE_CHECKING:
    from ..codec import SpeechCodec


def codes_of(steps: Steps, text: str, speaker: str | None) -> Iterator[Tensor]:
    """Frames (1, 1, Q) of a text, each as soon as its last codebook is there; a long text piece by
    piece, as `Talker.generate` splits it."""
    talker = steps.talker
    numbers = {name: i for i, name in enumerate(talker.speakers, start=1)}
    voice = speaker_id("speaker", numbers, speaker)
    for piece in pieces("text", text, talker.max_text):
        yield from steps.frames(piece, voice)


def mels_of(codec: "SpeechCodec", frames: Iterator[Tensor]) -> Iterator[Tensor]:
    """Log-mels (1, n_mels, frames_per_code) of frames of codes (1, 1, Q), in order.

    Stacked, a code has all of its mel. Of means, what lies between two of them is interpolated, so
    that a code waits for the next one.
    """
    per_code, pooling = codec.frames_per_code, codec.pooling
    if pooling == "stack" or per_code == 1:
        for codes in frames:
            mel = codec.rvq.decode(codes)
            yield unpool_frames(mel, per_code, pooling).transpose(1, 2)
        return
    rows: list[Tensor] = []  # the one before, this one, the next
    for codes in frames:
        rows.append(codec.rvq.decode(codes))
        if len(rows) > 1:
            yield _of_row(rows, len(rows) - 2, per_code)
            del rows[:-2]
    if rows:
        yield _of_row(rows, len(rows) - 1, per_code)


def _of_row(rows: list[Tensor], which: int, per_code: int) -> Tensor:
    mel = unpool_frames(torch.cat(rows, 1), per_code)
    return mel[:, which * per_code : (which + 1) * per_code].transpose(1, 2)
