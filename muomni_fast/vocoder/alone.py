"""Items of a batch with lengths, one by one, where there are no kernels: torch's convolutions round
differently in another batch, and what follows an item's end need not be computed.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from ..reference.checks import refuse_in_capture


def each_alone(
    lengths: Tensor,
    one: Callable[..., Sequence[Tensor | None]],
    inputs: Sequence[Tensor],
    into: Sequence[Tensor],
    sums: Sequence[Tensor] = (),
) -> None:
    """Run something on each item that has frames, as if it were alone.

    Args:
        lengths: (B,) frames of each item.
        one: takes an item's part (1, ..., frames * rows_per_frame) of every input, and gives what
            is added to its part of `into`, and to all of `sums`; None where there is nothing.
        inputs: (B, ..., T * rows_per_frame), the mel first, or (B, ..., 1) for all frames.
        into: the same kind, zero before.
        sums: over all items.
    """
    refuse_in_capture(lengths.device, "lengths: without kernels they are read, which waits")
    frames_in_all = inputs[0].shape[-1]
    for item, frames in enumerate(lengths.tolist()):
        if frames > 0:  # compiled code does not check
            own = [
                t[item : item + 1, ..., : t.shape[-1] // frames_in_all * frames or 1]
                for t in (*inputs, *into)
            ]
            found = one(*own[: len(inputs)])
            for total, value in zip([*own[len(inputs) :], *sums], found, strict=True):
                if value is not None:
                    total += value
