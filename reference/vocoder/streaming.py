"""A vocoder run on a mel that is still arriving."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .addends import Addends, rows_at, spread


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
    generate: Callable[..., Tensor],
    chunks: Iterable[Tensor | tuple[Tensor, Addends | None]],
    context: Context,
    rates: Sequence[int],
    check: Callable[[Tensor, Addends | None], Addends],
) -> Iterator[Tensor]:
    """Audio of a mel that arrives in chunks of any lengths.

    The state is the last `past + future` frames or fewer: every call generates from all that its
    new frames depend on, and gives away what those alone decide. So the audio is that of the whole
    mel, edges included, and nothing is left over.

    Args:
        generate: (B, n_mels, T) -> (B, T * hop_length), with `addends` where there are some.
        chunks: (B, n_mels, t) each, t >= 0, or pairs of that and its addends.
        context: of `generate`.
        rates: of upsampling; their product is the hop.
        check: raises unless it is given a mel and addends that `generate` takes; the addends of
            every place.

    Yields:
        (B, n * hop_length), n >= 1 frames whose audio is complete.

    Raises:
        ValueError: a chunk's batch, device or dtype, or where it has addends, is not the first
            one's; what `check` raises.
    """
    rows = rows_at(rates)  # of a frame
    hop_length = rows[-1]
    held: Tensor | None = None  # frames that audio to come depends on
    added: Addends = []  # to them
    ready = 0  # of them, those whose audio was given away
    for chunk in chunks:
        mel, own = chunk if isinstance(chunk, tuple) else (chunk, None)
        if mel.ndim == 3 and mel.shape[2] == 0:
            continue
        own = spread(check(mel, own), mel.shape[2], rates)
        if held is None:
            held = mel.clone()  # its memory may be used for the next one
            added = [a if a is None else a.clone() for a in own]
        else:
            _require_same_kind(mel, held)
            _require_same_places(own, added)
            held = torch.cat([held, mel], 2)
            both = zip(added, own, strict=True)
            added = [None if a is None or b is None else torch.cat([a, b], 2) for a, b in both]
        complete = held.shape[2] - context.future
        if complete > ready:
            audio = _audio(generate, held, added)
            yield audio[:, ready * hop_length : complete * hop_length]
            drop = max(0, complete - context.past)
            held, ready = held[:, :, drop:], complete - drop
            at_places = zip(added, rows, strict=True)
            added = [a if a is None else a[:, :, drop * each :] for a, each in at_places]
    if held is not None and held.shape[2] > ready:
        yield _audio(generate, held, added)[:, ready * hop_length :]


def _audio(generate: Callable[..., Tensor], mel: Tensor, addends: Addends) -> Tensor:
    if all(addend is None for addend in addends):
        return generate(mel)
    return generate(mel, addends=addends)


def _require_same_places(addends: Addends, first: Addends) -> None:
    got, expected = ([i for i, a in enumerate(side) if a is not None] for side in (addends, first))
    if got != expected:
        raise ValueError(f"mel_chunks: expected addends {expected}, as before, got {got}")


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
