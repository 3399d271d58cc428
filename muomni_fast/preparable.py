"""What modules that can be prepared for inference share."""

import itertools
import logging
import operator
import weakref
from collections.abc import Callable
from itertools import repeat
from typing import Any, Self

import torch
from torch import Tensor, nn

from .reference.checks import refuse_in_capture, require_whole

log = logging.getLogger("muomni_fast")
_version = operator.attrgetter("_version")
# Sources by a name: the compiler takes no other argument for what it may not look into.
_keys = itertools.count()
_by_key: weakref.WeakValueDictionary[str, "Sources"] = weakref.WeakValueDictionary()
# Hooks that torch calls for every module there is.
EVERY_MODULES_HOOKS = (
    nn.modules.module._global_forward_hooks,
    nn.modules.module._global_forward_pre_hooks,
    nn.modules.module._global_backward_hooks,
    nn.modules.module._global_backward_pre_hooks,
)
# What makes a convolution the one it is, besides its weights.
_settings = operator.itemgetter(
    "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "output_padding"
)


class Sources:
    """The weights of a module from which something was computed: whether they are still these, with
    these values, in this module.

    Writes into their memory through `.data`, and to tensors made in inference mode, leave no trace.
    """

    def __init__(self, module: nn.Module) -> None:
        inside = [*module.modules()]
        self._families = [inner._modules for inner in inside]
        self._children = [*map(dict, self._families)]
        holders = [holder for m in inside for holder in (m._parameters, m._buffers)]
        self._empty = [holder for holder in holders if not holder]
        self._holders = [holder for holder in holders if holder]
        self._sizes = [*map(len, self._holders)]
        places = [(holder, *item) for holder in self._holders for item in holder.items()]
        self._places, self._names, self._values = map(list, zip(*places, strict=True))
        self._module = module
        self.told = False  # that they have changed
        self._track()

    def _track(self) -> None:
        self.key = str(next(_keys))
        _by_key[self.key] = self
        tensors = [value for value in self._values if isinstance(value, Tensor)]
        self._tracked = [tensor for tensor in tensors if not tensor.is_inference()]
        self._versions: list[int] | None = [*map(_version, self._tracked)]
        self._addresses = [*map(Tensor.data_ptr, self._tracked)]  # `.data = ...` moves a tensor

    def unchanged(self, module: nn.Module) -> bool:
        """Asked at every call: without a call in Python for each tensor."""
        found = map(dict.get, self._places, self._names)
        return (
            [*map(_version, self._tracked)] == self._versions
            and [*map(Tensor.data_ptr, self._tracked)] == self._addresses
            # `torch.export` puts tensors without values in the places of the weights.
            and (torch.compiler.is_exporting() or all(map(operator.is_, found, self._values)))
            and not any(self._empty)
            and [*map(len, self._holders)] == self._sizes
            and self._families == self._children
            and module is self._module  # a replica shares attributes with the original
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_versions": [] if self.unchanged(self._module) else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        stale = self._versions is None or "_families" not in state  # version 0.2 had other fields
        self._track()  # a copy's tensors count their own writes
        if stale:
            self._versions = None


class Structure:
    """The modules inside one: whether they are still the same, with the same classes, settings and
    attributes of convolutions and `forward`, and without hooks on them."""

    def __init__(self, root: nn.Module) -> None:
        inside = [*root.modules()]
        convolutions = [m for m in inside if isinstance(m, (nn.Conv1d, nn.ConvTranspose1d))]
        self._root, self._inside = root, inside
        self._own_hooks = hooks_of(root)  # which run before anything is asked here
        self._families = [module._modules for module in inside]
        self._children = [*map(dict, self._families)]
        self._dicts = [module.__dict__ for module in inside]
        self._hooks = [hooks for module in inside[1:] for hooks in hooks_of(module)]
        self._hooks += EVERY_MODULES_HOOKS
        self._hooked = any(self._hooks)
        self._convolutions = [module.__dict__ for module in convolutions]
        self._parameters = [module._parameters for module in convolutions]
        self._facts = self._look()

    def _look(self) -> list[list[Any]]:
        """What a plan rests on, besides the modules and their hooks."""
        return [
            [*map(type, self._inside)],
            [*map(bool, self._own_hooks)],
            [*map(_settings, self._convolutions)],
            [*map(len, self._convolutions)],
            [*map(len, self._parameters)],
            [*map(operator.contains, self._dicts, repeat("forward"))],
            [*map(operator.is_, map(dict.get, self._parameters, repeat("bias")), repeat(None))],
        ]

    def unchanged(self, root: nn.Module) -> bool:
        """Whether all is as it was, in this module; never where modules inside have hooks or had
        them. Asked at every call: each line passes over a list without a call in Python."""
        return (
            root is self._root
            and self._families == self._children
            and not self._hooked
            and not any(self._hooks)
            and self._look() == self._facts
        )


def hooks_of(module: nn.Module) -> tuple[Any, ...]:
    """What wants to see the module's calls."""
    own = module._forward_hooks, module._forward_pre_hooks
    return *own, module._backward_hooks, module._backward_pre_hooks


class Preparable(nn.Module):
    """Drops what `prepare` computed from the weights where they may change."""

    _prepared: Any = None
    _sources: Sources | None = None

    def _require_preparable(self) -> None:
        if self.training:
            raise RuntimeError("prepare: expected eval mode, got training mode; call eval() first")
        for name, parameter in self.named_parameters():
            require_whole(f"prepare: {name}", parameter)
        device = next(self.parameters()).device
        refuse_in_capture(device, "prepare: waits for the GPU; call it before the capture")

    def _keep(self, prepared: Any) -> Self:
        """What `prepare` computed, with what it was computed from."""
        self._prepared, self._sources = prepared, Sources(self)
        return self

    def _drop(self) -> None:
        self._prepared = self._sources = None

    def _current(self) -> Any:
        """What was prepared, or None where the weights are no longer those it was computed from.

        A compiled or exported program keeps what there was when it was traced.
        """
        if self._prepared is None or self._sources is None:
            return None
        if torch.compiler.is_compiling():
            return self._prepared if _when_traced(self._sources.key) else None
        if self._sources.unchanged(self):
            return self._prepared
        if not self._sources.told:
            self._sources.told = True
            name = type(self).__name__
            log.warning("%s: weights have changed since prepare(), which is not used", name)
        return None

    def train(self, mode: bool = True) -> Self:
        """As torch's; training drops what `prepare` computed."""
        if mode:
            self._drop()
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._drop()  # also when a parent module loads
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._drop()  # another device or dtype
        return super()._apply(fn, recurse)


def _when_traced(key: str) -> bool:
    """Whether what was prepared fits the weights, looked at once, while the module is traced."""
    sources = _by_key[key]
    return sources.unchanged(sources._module)


# As `torch.compiler.assume_constant_result` marks it, which would import the compiler here.
_when_traced._dynamo_marked_constant = True  # type: ignore[attr-defined]
