"""A vocoder run on a mel that is still arriving."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Context:
    """Frames besides its own that a frame's audio depends on.

    Attributes:
        past, future: frames before and after.
    """

    past: int
    future: int


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long a frame's audio must wait for frames after it, whatever computes it.

    Attributes:
        frames: mel frames.
        milliseconds: the same as time.
    """

    frames: int
    milliseconds: float


@torch.no_grad()
def stream(
    generate: Callable[[Tensor], Tensor],
    chunks: Iterable[Tensor],
    context: Context,
    hop_length: int,
    check: Callable[[Tensor], None],
) -> Iterator[Tensor]:
    """Audio of a mel that arrives in chunks of any lengths.

    The state is the last `past + future` frames or fewer: every call generates from all that its
    new frames depend on, and gives away what those alone decide. So the audio is that of the whole
    mel, edges included, and nothing is left over.

    Args:
        generate: (B, n_mels, T) -> (B, T * hop_length).
        chunks: (B, n_mels, t) each, t >= 0.
        context: of `generate`.
        hop_length: samples per frame.
        check: raises unless it is given a mel that `generate` takes.

    Yields:
        (B, n * hop_length), n >= 1 frames whose audio is complete.

    Raises:
        ValueError: a chunk's batch, device or dtype is not the first one's; what `check` raises.
    """
    held: Tensor | None = None  # frames that audio to come depends on
    ready = 0  # of them, those whose audio was given away
    for chunk in chunks:
        if chunk.ndim == 3 and chunk.shape[2] == 0:
            continue
        check(chunk)
        if held is None:
            held = chunk.clone()  # its memory may be used for the next one
        else:
            _require_same_kind(chunk, held)
            held = torch.cat([held, chunk], 2)
        complete = held.shape[2] - context.future
        if complete > ready:
            yield generate(held)[:, ready * hop_length : complete * hop_length]
            drop = max(0, complete - context.past)
            held, ready = held[:, :, drop:], complete - drop
    if held is not None and held.shape[2] > ready:
        yield generate(held)[:, ready * hop_length :]


def _require_same_kind(chunk: Tensor, first: Tensor) -> None:
    for name in ("dtype", "device"):
        got, expected = getattr(chunk, name), getattr(first, name)
        if got != expected:
            raise ValueError(f"mel_chunks: expected {name} {expected}, as before, got {got}")
    if chunk.shape[0] != first.shape[0]:
        raise ValueError(
            f"mel_chunks: expected a batch of {first.shape[0]}, as before, got {chunk.shape[0]}"
        )


def one_clip(vocoder: nn.Module, mel: Tensor | np.ndarray) -> Tensor:
    """Run a vocoder on one clip: (n_mels, T), tensor or array -> (T * hop_length,) tensor."""
    if not isinstance(mel, Tensor):
        mel = torch.as_tensor(mel, device="cpu")
    if mel.ndim != 2:
        raise ValueError(f"mel: expected one clip (n_mels, T), got {tuple(mel.shape)}")
    parameter = next(vocoder.parameters(), None)
    if parameter is not None:
        mel = mel.to(parameter)
    with torch.no_grad():
        return vocoder(mel[None])[0]
