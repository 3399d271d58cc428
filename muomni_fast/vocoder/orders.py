"""Numbers of many tensors copied in another order at once.

Laying out weights is copying numbers in another order, and so is giving their gradients back. A
generator has a hundred weights, and a few copies of each cost more to ask a GPU for than to do. So
an order is found once, by laying out numbers' own places, and from then on all tensors are put
together and their numbers taken in that order.
"""

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Of a device, in all orders. Each takes four bytes a number and stays, as a graph or another stream
# may be reading it: a generator has three, V1's together 168 MB.
MOST_NUMBERS = 1 << 26
ALIGNED = 8  # numbers: kernels load 16 bytes at once


class _Order(NamedTuple):
    """From where every number is taken, below ALIGNED for zero; and what becomes of them."""

    numbers: Tensor
    results: list["_Place"]


class _Place(NamedTuple):
    """Of a tensor, in some memory."""

    shape: torch.Size
    strides: tuple[int, ...]
    start: int


_orders: dict[Hashable, _Order] = {}


def in_order(
    tensors: Sequence[Tensor], layout: Callable[..., Sequence[Tensor]], *facts: Hashable
) -> Sequence[Tensor]:
    """`layout(tensors, *facts)`, contiguous, which does nothing but copy numbers and add zeros: by
    two operators, the results in one piece of memory."""
    order = _order(tensors, layout, facts)
    if order is None:
        return [tensor.contiguous() for tensor in layout(tensors, *facts)]
    packed = _taken(tensors, order)
    return [packed.as_strided(*place) for place in order.results]


def together(tensors: Sequence[Tensor], like: Tensor, usual: bool) -> Tensor:
    """All numbers of tensors, one after another as `apart` takes them.

    Args:
        tensors: of one dtype.
        like: what comes of them has its dtype; on the same device.
        usual: whether it is worth keeping an order of these.

    Returns:
        (size,).
    """
    if not tensors:
        return like.new_empty(0)
    if usual and not all(tensor.is_contiguous() for tensor in tensors):
        flat, places = _memory_of(tensors)
        order = _order(flat, _views, (places,))
        if order is not None:
            return _taken(flat, order).to(like.dtype)
    zeros = tensors[0].new_zeros(ALIGNED)
    parts = [part for t in tensors for part in (t.reshape(-1), zeros[: -t.numel() % ALIGNED])]
    return torch.cat(parts).to(like.dtype)


def apart(numbers: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of these shapes, as `together` put them: parts of its memory."""
    starts = itertools.accumulate((size_together([tensor]) for tensor in like), initial=0)
    return [
        numbers[start : start + tensor.numel()].view(tensor.shape)
        for start, tensor in zip(starts, like, strict=False)
    ]


def size_together(tensors: Sequence[Tensor]) -> int:
    """Numbers that `together` gives of these."""
    return sum(-(-tensor.numel() // ALIGNED) * ALIGNED for tensor in tensors)


def _memory_of(
    tensors: Sequence[Tensor],
) -> tuple[list[Tensor], tuple[tuple[int, _Place], ...]]:
    """The memory that tensors are views of, (numbers,) each; and of each which one, and where."""
    known: dict[int, int] = {}
    flat, places = list[Tensor](), []
    for tensor in tensors:
        memory = tensor.untyped_storage()
        which = known.setdefault(memory.data_ptr(), len(known))
        if which == len(flat):
            flat.append(tensor.as_strided((memory.nbytes() // tensor.element_size(),), (1,), 0))
        place = _Place(tensor.shape, tensor.stride(), int(tensor.storage_offset()))
        places.append((which, place))
    return flat, tuple(places)


def _views(flat: Sequence[Tensor], places: tuple[tuple[int, _Place], ...]) -> list[Tensor]:
    """What `_memory_of` was asked of."""
    return [
        flat[which].as_strided(shape, strides, flat[which].storage_offset() + start)
        for which, (shape, strides, start) in places
    ]


def _taken(tensors: Sequence[Tensor], order: _Order) -> Tensor:
    zeros = tensors[0].new_zeros(ALIGNED)
    numbers = torch.cat([zeros, *(tensor.reshape(-1) for tensor in tensors)])
    return numbers.index_select(0, order.numbers)


def _order(
    tensors: Sequence[Tensor], layout: Callable[..., Sequence[Tensor]], facts: tuple[Hashable, ...]
) -> _Order | None:
    """The order that is known, or found now; None where that may not be, or would be too many."""
    device = tensors[0].device
    key = layout, facts, device, *(tensor.shape for tensor in tensors)
    order = _orders.get(key)
    if order is None:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return None  # it would lie in the graph's memory
        held = (o.numbers.numel() for o in _orders.values() if o.numbers.device == device)
        if sum(held) + sum(tensor.numel() for tensor in tensors) > MOST_NUMBERS:
            return None
        # A thread of its own, for the reasons that `counters.counters` has one.
        with ThreadPoolExecutor(1) as thread:
            shapes = [tensor.shape for tensor in tensors]
            order = thread.submit(_found, shapes, layout, facts, device).result()
        _orders[key] = order
    return order


def _found(
    shapes: Sequence[torch.Size],
    layout: Callable[..., Sequence[Tensor]],
    facts: tuple[Hashable, ...],
    device: torch.device,
) -> _Order:
    sizes = [math.prod(shape) for shape in shapes]
    places = torch.arange(ALIGNED, ALIGNED + sum(sizes), dtype=torch.int32).split(sizes)
    own = [place.view(shape) for place, shape in zip(places, shapes, strict=True)]
    found = [tensor.contiguous() for tensor in layout(own, *facts)]
    aligned = [F.pad(tensor.flatten(), (0, -tensor.numel() % ALIGNED)) for tensor in found]
    starts = itertools.accumulate(map(len, aligned), initial=0)
    results = [_Place(t.shape, t.stride(), at) for t, at in zip(found, starts, strict=False)]
    numbers = torch.cat(aligned).to(device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # kernels on any stream come after
    return _Order(numbers, results)
