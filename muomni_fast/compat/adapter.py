"""What runs in place of a module's own methods.

An adapter is a plain object, and what is set on a module are its bound methods: so the module can
be copied, pickled and compiled with them, its copy gets an adapter of its own, and neither the
state dict nor the modules inside show anything of it.
"""

import copy
import types
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.weight_norm import WeightNorm

from ..operators import learning
from ..preparable import EVERY_MODULES_HOOKS, Sources, Structure, hooks_of

# Methods of a module after which what was prepared of its weights is dropped, and one that makes
# copies of it which have other tensors.
WATCHED = ("train", "_apply", "_load_from_state_dict", "_replicate_for_data_parallel")


class CopiedState(dict[str, Any]):
    """What copies of a swapped module are made of.

    A deep copy and a pickle get the methods too, of an adapter that is copied with the module. A
    shallow copy (`copy.copy`) gets none: those would be the original's, and so would `train` be.

    Args:
        state: of the module, without the methods.
        methods: that were set on it.
    """

    def __init__(self, state: dict[str, Any], methods: dict[str, Any]) -> None:
        super().__init__(state)
        self._methods = methods

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy({**self, **self._methods}, memo)

    def __reduce__(self) -> Any:
        return dict, ({**self, **self._methods},)


class Adapter:
    """Runs one module of another library.

    Attributes:
        module: whose methods are replaced. Its tensors are read at every call; only what
            `_prepare` computes of them is kept.
    """

    family: ClassVar[str]  # for the report
    classes: ClassVar[tuple[str, ...]]  # qualified names
    methods: ClassVar[tuple[str, ...]]  # that are replaced
    configs: ClassVar[tuple[str, ...]] = ()  # `model_type` of its configs, or class

    def __init__(self, module: Any) -> None:
        self.module = module
        # What it was prepared from, and what was: one value, so that threads see both or none.
        self._kept: tuple[Sources, Any] | None = None
        self._structure: Structure | None = None
        self._fits = True  # the structure of before

    @classmethod
    def knows(cls, module: nn.Module) -> bool:
        """Whether a module is of this family's class."""
        return name_of(type(module)) in cls.classes

    @classmethod
    def misfit(cls, module: Any) -> str:
        """Why a module of a known class cannot run here, or "" if it can."""
        raise NotImplementedError

    @classmethod
    def slower(cls, module: Any) -> str:
        """What was measured, where a module of this shape runs slower here; "" otherwise."""
        return ""

    @classmethod
    def swap(cls, module: Any) -> None:
        """Let a module run here."""
        cls(module).attach()

    @classmethod
    def swapped(cls, module: Any) -> bool:
        """Whether it does."""
        return adapter_of(module) is not None

    def own(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What the module's class does."""
        return getattr(type(self.module), method)(self.module, *args, **kwargs)

    def attach(self) -> None:
        """Replace the module's methods, on this instance."""
        for name, method in self._replacements().items():
            setattr(self.module, name, method)

    def detach(self) -> None:
        """The inverse of `attach`."""
        self._strip(self.module.__dict__)

    def _replacements(self) -> dict[str, Any]:
        """What is set on the module, by name."""
        methods = {name: getattr(self, name) for name in (*self.methods, *WATCHED)}
        return methods | {"__getstate__": self.copied_state}

    def _strip(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """Take this adapter's methods out of a module's attributes; returns them."""
        names = [n for n in self._replacements() if belongs_to(attributes.get(n), self)]
        return {name: attributes.pop(name) for name in names}

    def copied_state(self) -> Any:
        """What `copy` and `pickle` ask the module for."""
        state = self.own("__getstate__")
        if not isinstance(state, dict):
            return state
        plain = dict(state)
        methods = self._strip(plain)
        return CopiedState(plain, methods)

    def _replicate_for_data_parallel(self) -> nn.Module:
        """The module's own. A replica lives for one call, on another GPU with tensors of its own,
        so its class's code runs."""
        replica: nn.Module = self.own("_replicate_for_data_parallel")
        self._strip(replica.__dict__)
        return replica

    def train(self, mode: bool = True) -> nn.Module:
        """The module's own; training drops what was prepared."""
        if mode:
            self.drop()
        return self.own("train", mode)

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        self.drop()  # another device or dtype
        return self.own("_apply", *args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.drop()
        self.own("_load_from_state_dict", *args, **kwargs)

    def drop(self) -> None:
        """Forget what was prepared."""
        self._kept = self._structure = None

    def stands_back(self) -> bool:
        """Whether the module's own code runs whatever the input: in training, and under
        `torch.jit.trace`, which would record what was prepared instead of the weights."""
        return self.module.training or torch.jit.is_tracing()

    def _look(self) -> bool:
        """Whether the module, whose structure is new, runs here."""
        return not self.misfit(self.module)

    def usable(self) -> bool:
        """Whether the module still is what it was known as: its modules, and hooks on them.

        The compiler watches that itself.
        """
        if torch.compiler.is_compiling():
            return self._fits
        structure = self._structure
        if structure is None or not structure.unchanged(self.module):
            self.drop()
            self._fits = self._look()
            self._structure = Structure(self.module)
        return self._fits

    def _prepare(self) -> Any:
        """What calls need of the weights, computed once; None where they are not finite, say."""
        raise NotImplementedError

    def ready(self) -> Any:
        """What was prepared of the weights as they are now; prepared anew where they have changed.

        None in a compiled program, which would keep it when the weights change.
        """
        if torch.compiler.is_compiling():
            return None
        kept = self._kept
        if kept is not None and kept[0].unchanged(self.module):
            return kept[1]
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return None  # preparing waits for the GPU
        sources = Sources(self.module)
        with torch.inference_mode(False), torch.no_grad():
            prepared = self._prepare()
        self._kept = sources, prepared
        return prepared

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_structure": None}  # a copy looks for itself


def differentiated(x: Tensor, weights: Iterable[Tensor]) -> bool:
    """Whether a call may be asked for derivatives of any kind: then a module's own code runs."""
    if torch.is_grad_enabled() and learning(x, *weights):
        return True
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return True
    return forward_ad._current_level >= 0


def belongs_to(method: Any, adapter: Adapter) -> bool:
    """Whether something is a method of this adapter."""
    return isinstance(method, types.MethodType) and method.__self__ is adapter


def name_of(cls: type) -> str:
    """A class's qualified name."""
    return f"{cls.__module__}.{cls.__qualname__}"


def named(module: nn.Module, name: str, *inside: str) -> bool:
    """Whether a class that is not ours, of no package, has this name and these modules."""
    cls = type(module)
    ours = cls.__module__.split(".")[0] == "muomni_fast"
    return cls.__qualname__ == name and not ours and set(inside) <= module._modules.keys()


def adapter_of(module: nn.Module) -> Adapter | None:
    """The adapter whose methods a module has."""
    for value in module.__dict__.values():
        if not isinstance(value, types.MethodType):  # others' `__getattr__` may do anything
            continue
        adapter = value.__self__
        if isinstance(adapter, Adapter) and adapter.module is module:
            return adapter
    return None


def watched(modules: Iterable[nn.Module]) -> bool:
    """Whether somebody wants to see calls of these modules, or has replaced what they do."""
    return any("forward" in m.__dict__ or any(hooks_of(m)) for m in modules) or any(
        EVERY_MODULES_HOOKS
    )


def hooked(module: nn.Module) -> str:
    """Why modules inside have to be called, or "": hooks, or another `forward`, run only then."""
    inside = [inner for inner in module.modules() if inner is not module]
    hooks = (hook for inner in inside for hook in inner._forward_pre_hooks.values())
    if any(isinstance(hook, WeightNorm) for hook in hooks):
        return "its weights are normed by hooks (torch's older weight_norm): remove_weight_norm"
    return "modules inside are hooked or had their forward replaced" if watched(inside) else ""
