"""Weight normalisation under HiFi-GAN's parameter names, whatever the torch API calls them.

torch keeps a normed weight as `parametrizations.weight.original0/1`; published checkpoints, and
ours, have `weight_g` and `weight_v`. Salimans and Kingma, "Weight normalization" (2016): w = g * v
/ ||v||.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d)
TORCH_NAMES = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def normed(module: nn.Module) -> nn.Module:
    """Put weight normalisation (over all dimensions but the first) on a convolution."""
    weight_norm(module)
    module.register_state_dict_post_hook(_use_published_names)
    return module


def is_normed(module: nn.Module) -> bool:
    """Whether `normed` was applied to this module and not yet folded."""
    return parametrize.is_parametrized(module, "weight")


def fold(module: nn.Module) -> None:
    """Replace every normed weight below `module` by its value.

    Raises:
        ValueError: a value is not finite: `weight_v` is zero throughout, and so has no direction.
    """
    for name, child in module.named_modules():
        if isinstance(child, CONVOLUTIONS) and is_normed(child):
            # Not torch's remove_parametrizations: it breaks every deepcopy of the module, whose
            # class is shared, and without gradients it leaves a buffer.
            with torch.inference_mode(False), torch.no_grad():
                weight = nn.Parameter(child.weight.detach().clone())
            if not torch.isfinite(weight).all():
                raise ValueError(f"{name}.weight: weight_g * weight_v / |weight_v| is not finite")
            child.__class__ = type(child).__mro__[1]
            del child.parametrizations
            child.register_parameter("weight", weight)


def _use_published_names(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    for torch_name, name in TORCH_NAMES.items():
        if prefix + torch_name in state:
            state[prefix + name] = state.pop(prefix + torch_name)


def fold_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of `state` in which each pair `weight_g`, `weight_v` has become one `weight`."""
    folded = dict(state)
    for key in state:
        if key.endswith("weight_g") and key[:-1] + "v" in state:
            g, v = folded.pop(key), folded.pop(key[:-1] + "v")
            norm = torch.linalg.vector_norm(v.double(), dim=tuple(range(1, v.ndim)), keepdim=True)
            folded[key[:-2]] = (v.double() * (g.double() / norm)).to(v.dtype)
    return folded


def split_state(state: dict[str, Tensor], normed_names: set[str]) -> dict[str, Tensor]:
    """A copy of `state` in which each plain weight named in `normed_names` has become a pair."""
    split = dict(state)
    for name in normed_names & state.keys():
        v = split.pop(name)
        dims = tuple(range(1, v.ndim))
        norm = torch.linalg.vector_norm(v, dim=dims, keepdim=True)
        split[name + "_g"] = norm
        split[name + "_v"] = v.where(norm > 0, torch.ones_like(v))  # zeros have no direction
    return split


def accept_both_kinds(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Load hook: turn `weight` into `weight_g`, `weight_v` or back, as `module` needs."""
    names = {
        f"{prefix}{name}.weight"
        for name, child in module.named_modules()
        if isinstance(child, CONVOLUTIONS) and is_normed(child)
    }
    converted = split_state(state, names) if names else fold_state(state)
    state.clear()  # in place: the children are loaded from this very mapping
    state.update(converted)
