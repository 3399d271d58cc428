"""Log-mels of audio that arrives in blocks: frames of long files in bounded memory."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from .mel import MelConfig, log_mel


def mel_blocks(audio: Iterable[Tensor], config: MelConfig, frames: int) -> Iterator[Tensor]:
    """`log_mel` of audio, cut between frames: joined, the pieces are the mel of the whole.

    A frame sees as many samples as it would in the whole, so a cut adds nothing but what float64
    sums in another order round, before the result is rounded to float32.

    Args:
        audio: (n,) each, of any n, float32 or float64.
        config: mel settings.
        frames: of a piece, at least 1; the last may have fewer.

    Yields:
        (n_mels, t), t >= 1; none if there are no samples.
    """
    hop = config.hop_length
    margin = -(-(config.n_fft - hop) // (2 * hop))  # frames whose samples a frame also sees
    held: Tensor | None = None  # begins at a frame
    seen = 0  # frames of it that were given away, and are there for those after them
    for block in audio:
        held = block if held is None else torch.cat([held, block])
        while len(held) >= (seen + frames + margin) * hop:
            piece = held[: (seen + frames + margin) * hop]
            yield log_mel(piece, config)[:, seen : seen + frames]
            drop = max(0, seen + frames - margin)
            held, seen = held[drop * hop :], seen + frames - drop
    if held is not None and len(held) > seen * hop:
        yield from log_mel(held, config)[:, seen:].split(frames, dim=1)
