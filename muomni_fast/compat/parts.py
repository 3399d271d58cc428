"""Kinds of parts of models, known by their keys in files, and how a module is made of one."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from ..reference.checkpoint import load_state
from ..reference.errors import CheckpointError
from ..reference.reading import blaming
from ..reference.values import cut, held_by_file, listed
from .quantizers import QuantizerAdapter

M = TypeVar("M", bound=nn.Module)
NOTHING = r"(?!)"  # which nothing looks like


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of part.

    Attributes:
        name: for the log and for errors.
        inside: what all its keys look like, after what they all begin with.
        mark: what one key looks like that each such part has.
        outside: what keys look like that may stand beside those inside, of no use here.
        adapter: that knows its keys; None if they are ours, or those of HiFi-GAN's own code, or a
            generator's whose config must say which.
    """

    name: str
    inside: str
    mark: str
    outside: str = NOTHING
    adapter: type[QuantizerAdapter] | None = None


def built(
    make: Callable[[], M], blamed: str | Path, state: dict[str, Tensor], source: str | Path
) -> M:
    """What `make` makes, with these weights, in eval mode.

    Args:
        make: the model; raises what its constructor does, which refuses to be larger than `state`
            can fill.
        blamed: for what `make` raises.
        state: its weights, under our names.
        source: for weights that do not fit.

    Raises:
        CheckpointError: settings or weights do not fit; names what.
    """
    with blaming(blamed), held_by_file(sum(value.numel() for value in state.values())):
        model = make()
    load_state(model, state, source)
    return model.eval()


def require_known(
    path: Path, prefix: str, kind: Kind, beside: Iterable[str], outside: str | None = None
) -> None:
    """Refuse a part with more inside than is known: it would compute something else.

    Args:
        path: of the weights.
        prefix: what the part's keys begin with.
        kind: of part.
        beside: keys with that prefix, without it, that are not `kind.inside`.
        outside: instead of `kind.outside`.

    Raises:
        CheckpointError: some are not known; names the first.
    """
    known = re.compile(kind.outside if outside is None else outside)
    unknown = [name for name in beside if not known.fullmatch(name)]
    if unknown:
        raise CheckpointError(
            f"{path}: expected keys of a {kind.name} at {cut(prefix)!r}, got {listed(unknown)} "
            "besides: with what they are for, it would compute something else"
        )
