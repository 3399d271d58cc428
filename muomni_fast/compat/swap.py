"""Swapping what is known inside a model, and putting it back."""

import dataclasses
from typing import Any, TypeVar

from torch import nn

from .adapter import Adapter, adapter_of, name_of
from .micro_omni import held_vocoder
from .registry import ADAPTERS, LATER

Model = TypeVar("Model")
WHEN = "what is swapped runs in eval mode, where no gradient may be asked for; see the guide"


@dataclasses.dataclass(frozen=True)
class Found:
    """A module of a known class.

    Attributes:
        name: of the module inside the model; "" is the model itself.
        family: what its class is of.
        methods: that run here now; empty if none.
        reason: why not; empty if they do.
    """

    name: str
    family: str
    methods: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        what = f"{self.name or 'the model'} ({self.family})"
        if self.methods:
            return f"swapped      {what}: {', '.join(self.methods)}"
        return f"not swapped  {what}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What `accelerate` found in a model, in the order of its modules.

    Attributes:
        found: every module of a known class.
    """

    found: tuple[Found, ...]

    @property
    def swapped(self) -> tuple[Found, ...]:
        """What runs on this library's operations now."""
        return tuple(found for found in self.found if found.methods)

    @property
    def skipped(self) -> tuple[Found, ...]:
        """What is known but was left as it is; each says why."""
        return tuple(found for found in self.found if not found.methods)

    def __str__(self) -> str:
        when = [WHEN] if self.swapped else []
        return "\n".join([*map(str, self.found), *when]) or "nothing known in this model"


def accelerate(model: Any, *, slower: bool = False) -> Report:
    """Let what is known inside a model run on this library's operations.

    A class is known by its qualified name and its modules; the guide lists all. On such an instance
    `forward`, or `encode` and `decode`, are replaced, nothing else: weights stay where they are,
    and state dict, `save_pretrained`, copies and pickles are as before. In training mode, where a
    gradient may be asked for, under `torch.jit.trace`, in replicas of `nn.DataParallel`, and for
    arguments that have no counterpart here, the module's own code runs; convolutions of
    discriminators also run here in training. `restore` undoes all of it.

    What inference needs of the weights is computed at the first call, and anew after `train`, `to`,
    `load_state_dict`, or where weights have changed otherwise. Only writes into memory through
    `.data`, or to weights made in inference mode, are not noticed. Compiled programs keep nothing:
    they read the weights at every call.

    Args:
        model: any module, of which any part may be known; or micro-Omni's `NeuralVocoder`.
        slower: also swap what was measured to be slower here.

    Returns:
        What was swapped, and what was not and why.

    Raises:
        TypeError: `model` is no module.
    """
    found = []
    for name, module in _modules(model):
        family, known = _known(module)
        if not family:
            continue
        reason = known if isinstance(known, str) else _reason(module, known, slower)
        if isinstance(known, str) or reason:
            found.append(Found(name, family, reason=reason))
            continue
        if not known.swapped(module):
            known.swap(module)
        found.append(Found(name, family, known.methods))
    return Report(tuple(found))


def restore(model: Model) -> Model:
    """Undo `accelerate` on a model and all modules inside; returns the model itself.

    Raises:
        TypeError: `model` is no module.
    """
    for _, module in _modules(model):
        adapter = adapter_of(module)
        if adapter is not None:
            adapter.detach()
    return model


def _modules(model: Any) -> list[tuple[str, Any]]:
    """Everything that may be known, by name: a model's modules, or what is no module and holds
    one."""
    if isinstance(model, nn.Module):
        return list(model.named_modules())
    held = held_vocoder(model)
    if held is None:
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(held, nn.Module):
        return [("vocoder", held)]
    return [(f"vocoder.{name}".strip("."), module) for name, module in held.named_modules()]


def _known(module: Any) -> tuple[str, Any]:
    """The family of a module's class, and its adapter, or why there is none; "" if it is not
    known."""
    cls = type(module)
    name = name_of(cls)
    if name in LATER:
        return LATER[name]
    if not isinstance(module, nn.Module):
        return "micro-Omni", f"{cls.__qualname__} has no weights, and ours gives other audio"
    for adapter in ADAPTERS:
        if adapter.knows(module):
            return adapter.family, adapter
    for parent in cls.__mro__[1:]:
        for adapter in ADAPTERS:
            if name_of(parent) in adapter.classes:
                return adapter.family, f"{name} is derived from {name_of(parent)}"
    return "", None


def _reason(module: nn.Module, known: type[Adapter], slower: bool) -> str:
    """Why a module of a known class is not swapped, or ""."""
    if known.swapped(module):
        return ""
    for method in known.methods:
        if method in module.__dict__:
            return f"its {method} was replaced before"
    return known.misfit(module) or ("" if slower else known.slower(module))
