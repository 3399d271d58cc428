"""Weight normalisation under HiFi-GAN's parameter names: w = g * v / ||v||, a norm per filter.

Salimans and Kingma, "Weight normalization" (2016). Not torch's parametrization: its names are not
those of published checkpoints, and modules that have one can neither be pickled nor, once it was
removed, copied.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

from ..checks import accept_wrapped_names, require_finite, require_whole

# Names of torch's parametrization of a weight, and the published ones.
TORCH_NAMES = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}
POWER_ITERATIONS = 100  # when a weight is loaded that has no singular vectors with it
UNIT = 1e-2  # how near to 1 the largest singular value of such a weight must be


class _Normed:
    """A convolution whose parameters are `weight_g`, the filters' norms, and `weight_v`."""

    weight_g: nn.Parameter
    weight_v: nn.Parameter

    @property
    def weight(self) -> Tensor:
        return torch._weight_norm(self.weight_v, self.weight_g, 0)


class NormedConv1d(_Normed, nn.Conv1d):  # type: ignore[override]
    """`nn.Conv1d` of a normed weight."""


class NormedConv2d(_Normed, nn.Conv2d):  # type: ignore[override]
    """`nn.Conv2d` of a normed weight."""


class NormedConvTranspose1d(_Normed, nn.ConvTranspose1d):  # type: ignore[override]
    """`nn.ConvTranspose1d` of a normed weight."""


CLASSES = {
    nn.Conv1d: NormedConv1d,
    nn.Conv2d: NormedConv2d,
    nn.ConvTranspose1d: NormedConvTranspose1d,
}
PLAIN = {normed: plain for plain, normed in CLASSES.items()}
CONVOLUTIONS = tuple(CLASSES)


def normed(module: Any) -> nn.Module:
    """Put weight normalisation (over all dimensions but the first) on a convolution."""
    weight = module.weight.detach()
    del module.weight
    module.__class__ = CLASSES[type(module)]
    module.weight_g = nn.Parameter(_norms(weight))
    module.weight_v = nn.Parameter(weight.clone())
    return module


def fold(module: nn.Module) -> None:
    """Replace every normed weight below `module` by its value: all of them, or none.

    Raises:
        TypeError: weights are sharded over processes.
        ValueError: a value is not finite: `weight_v` is zero throughout, and so has no direction.
    """
    convolutions: list[Any] = []
    weights = []
    for name, conv in module.named_modules():
        if isinstance(conv, _Normed):
            require_whole(f"{name}.weight_g", conv.weight_g)
            with torch.inference_mode(False), torch.no_grad():
                weight = nn.Parameter(conv.weight.detach().clone())
            if not weight.is_meta and not weight.isfinite().all():
                raise ValueError(f"{name}.weight: weight_g * weight_v / |weight_v| is not finite")
            convolutions.append(conv)
            weights.append(weight)
    for conv, weight in zip(convolutions, weights, strict=True):
        del conv.weight_g, conv.weight_v
        conv.__class__ = PLAIN[type(conv)]
        conv.weight = weight


def spectrally_normed(module: nn.Module) -> nn.Module:
    """Put spectral normalisation on a convolution: torch's older kind, whose names are published.

    It leaves the normed weight as a plain attribute of the module. With its history a module that
    was trained could not be copied, so that is forgotten after every call.
    """
    spectral_norm(module)
    module.register_forward_hook(_forget_history, always_call=True)
    return module


def _forget_history(module: Any, *_: Any) -> None:
    if "weight" in module.__dict__:  # not where torch's `remove_spectral_norm` has been
        module.weight = module.weight.detach()


def _norms(weight: Tensor) -> Tensor:
    """Norm of each filter, (N, 1, ...)."""
    if weight.is_meta:  # torch would work out the shape in Python, which takes a millisecond
        return weight.new_empty([*weight.shape[:1], *[1] * (weight.ndim - 1)])
    dims = tuple(range(1, weight.ndim))
    return torch.linalg.vector_norm(weight, dim=dims, keepdim=True)


def accept_weights(module: nn.Module) -> None:
    """Let `module` load the weights of its convolutions, and refuse those that do not fit."""
    module.register_load_state_dict_pre_hook(accept_wrapped_names)
    module.register_load_state_dict_pre_hook(accept_both_kinds)
    module.register_load_state_dict_pre_hook(require_finite)


def accept_both_kinds(
    module: nn.Module,
    state: dict[str, Tensor],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Load hook: give each convolution below `module` its weight in the form it keeps it in,
    whichever form the state dict has: plain, normed, or normed under torch's names. Modules pickled
    by version 0.2 name this function.

    A pair is of one dtype, fits the filters, and its value is finite; all that do not are reported.
    """
    conv: Any
    for path, conv in module.named_modules():
        if not isinstance(conv, CONVOLUTIONS):
            continue
        name = f"{prefix}{path}." if path else prefix
        if all(name + theirs in state for theirs in TORCH_NAMES):
            for theirs, ours in TORCH_NAMES.items():
                if name + ours not in state:
                    state[name + ours] = state.pop(name + theirs)
        plain, g, v = (state.get(name + key) for key in ("weight", "weight_g", "weight_v"))
        if not all(value is None or isinstance(value, Tensor) for value in (plain, g, v)):
            continue  # torch names what is no tensor
        if hasattr(conv, "weight_orig"):
            if plain is not None and name + "weight_orig" not in state:
                _norm_spectrally(conv, state, name, errors)
        elif plain is not None and g is None and v is None:
            if isinstance(conv, _Normed) and plain.is_floating_point():
                norms = _norms(plain)
                state[name + "weight_g"] = norms
                # A filter of zeros has no direction.
                state[name + "weight_v"] = plain.where(norms > 0, torch.ones_like(plain))
                del state[name + "weight"]
        elif plain is None and g is not None and v is not None:
            weight, misfit = _value(g, v, conv)
            if misfit:
                errors.append(f"{name}weight_g, weight_v: {misfit}")
            if not isinstance(conv, _Normed):
                del state[name + "weight_g"], state[name + "weight_v"]
                state[name + "weight"] = weight
            elif misfit:  # which is said: nothing else is wrong
                state[name + "weight_g"], state[name + "weight_v"] = conv.weight_g, conv.weight_v


def _value(g: Tensor, v: Tensor, conv: Any) -> tuple[Tensor, str]:
    """A normed weight's value, and what is wrong with it, if anything."""
    own = conv.weight
    expected = own.shape[0], *(1 for _ in own.shape[1:])
    if g.shape != expected or v.shape != own.shape:
        got = f"{tuple(g.shape)} and {tuple(v.shape)}"
        return own, f"expected shapes {expected} and {tuple(own.shape)}, got {got}"
    if g.dtype != v.dtype or not v.is_floating_point():
        return own, f"expected one floating point dtype, got {g.dtype} and {v.dtype}"
    if isinstance(conv, _Normed):
        weight = torch._weight_norm(v, g, 0)
    else:
        weight = (v.double() * (g.double() / _norms(v.double()))).to(v.dtype)
    if not weight.isfinite().all():
        return own, "the normed weight is not finite: a filter of weight_v is zero, say"
    return weight, ""


def _norm_spectrally(conv: Any, state: dict[str, Tensor], name: str, errors: list[str]) -> None:
    """Give a normed weight the singular vectors that it was saved without."""
    weight = state.pop(name + "weight")
    state[name + "weight_orig"] = weight
    if weight.shape != conv.weight_orig.shape:
        return  # strict loading says so
    matrix = weight.flatten(1).float()
    u = F.normalize(torch.ones_like(matrix[:, 0]), dim=0)
    for _ in range(POWER_ITERATIONS):
        v = F.normalize(matrix.T @ u, dim=0)
        u = F.normalize(matrix @ v, dim=0)
    sigma = float(u @ matrix @ v)
    if not abs(sigma - 1) <= UNIT:
        errors.append(
            f"{name}weight: expected a largest singular value of 1, got {sigma:.4g} (as it has "
            "after little training; weight_orig, weight_u and weight_v load in any case)"
        )
    state[name + "weight_u"], state[name + "weight_v"] = u, v
