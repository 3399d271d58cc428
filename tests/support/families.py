"""Small models of other libraries, accelerated, and how their results are compared."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from family_models import FAMILIES as PACKAGES
from family_models import Family
from torch import Tensor, nn

import muomni_fast
from support.peers import FAMILIES as PEERS

FRAMES = 20
FAMILIES = [*PACKAGES, *PEERS]
NAMES = [family.name for family in FAMILIES]
MODELS = {family.name: family for family in PACKAGES}
# Each with a way of its own; the others run as one of these.
DEEP = ["SpeechT5", "VITS, speakers", "EnCodec", "Mimi", "vector-quantize-pytorch"]
DEEP += ["micro-Omni vocoder", "micro-Omni quantizer"]
ADAPTERS = [FAMILIES[NAMES.index(name)] for name in DEEP]


class Case:
    """A small model of a family, accelerated, and what its part is called with."""

    def __init__(self, family: Family) -> None:
        torch.manual_seed(0)
        self.family = family
        try:
            self.model: Any = family.make(True)
        except ModuleNotFoundError as error:
            pytest.skip(f"{family.package} is not installed: {error}")
        with torch.no_grad():
            self.inputs = family.inputs(part_of(self.model, family), FRAMES)
        forget(self.model)
        self.before = dict(part_of(self.model, family).__dict__)
        self.report = muomni_fast.accelerate(self.model, slower=True)  # as small as they are

    @property
    def part(self) -> Any:
        return part_of(self.model, self.family)

    def ours(self, model: Any = None) -> list[Tensor]:
        """What the part of a model gives when it is called."""
        part = part_of(model or self.model, self.family)
        return self.results(part, lambda name: getattr(part, name))

    def theirs(self, model: Any = None) -> list[Tensor]:
        """What its class computes of the weights it has now."""
        part = part_of(model or self.model, self.family)
        forget(part)
        found = self.results(part, lambda name: getattr(type(part), name).__get__(part))
        forget(part)
        return found

    @torch.no_grad()
    def results(
        self, part: Any, method: Callable[[str], Any], dtype: torch.dtype | None = None
    ) -> list[Tensor]:
        """What each method gives; `dtype` is the part's, where it has no state dict."""
        found: list[Tensor] = []
        if dtype is None:
            dtype = next(t.dtype for t in part.state_dict().values() if t.is_floating_point())
        for name, arguments in self.inputs.items():
            cast = [a.to(dtype) if a.is_floating_point() else a for a in arguments]
            result = method(name)(*cast)
            found += result if isinstance(result, tuple) else [result]
        return found


def part_of(model: Any, family: Family) -> Any:
    return model.get_submodule(family.part)


def forget(model: nn.Module) -> None:
    """Mimi keeps codewords that it computed, also when the weights have changed."""
    for module in model.modules():
        if "_embed" in module.__dict__:
            module._embed = None


def change(part: Any, by: float = 1.25) -> None:
    """Every weight and codeword, in place, as an optimiser does it."""
    with torch.no_grad():
        for tensor in [*part.parameters(), *part.buffers()]:
            if tensor.is_floating_point() and tensor.ndim > 1:
                tensor.mul_(by)


def snr(found: Tensor, exact: Tensor) -> float:
    """dB."""
    found, exact = found.detach(), exact.detach()
    error = (found.double() - exact.double()).square().sum()
    return float(10 * torch.log10(exact.double().square().sum() / error))


def layout(x: Tensor) -> list[int]:
    """Strides, but of a dimension of one entry, which mean nothing."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def same(found: list[Tensor], expected: list[Tensor], least: float = 105.0) -> None:
    """Equal codes, and floats within `least` dB; alike in shape, dtype and layout."""
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert layout(ours) == layout(theirs)
        if ours.is_floating_point() and not torch.equal(ours, theirs):
            assert snr(ours, theirs) >= least
        else:
            assert torch.equal(ours, theirs)
