"""What other libraries' models leave on disk, and the part of it that runs here.

transformers' `save_pretrained` writes a `config.json` beside the weights. The parts are known by
their keys, wherever in a model they lie; how such keys become ours, and what settings mean, say the
adapters, as they do for `accelerate`.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from ..reference.errors import CheckpointError
from ..reference.reading import blaming, read_json
from ..reference.values import (
    MOST_CHANNELS,
    cut,
    require_bool,
    require_int,
    require_number,
    shown,
)
from ..reference.vocoder.published import ARGUMENTS
from ..rvq.modules import RVQ
from ..vocoder.modules import HiFiGANVocoder
from .generators import GeneratorAdapter
from .mimi import PARTS
from .parts import Kind, built, require_known
from .quantizers import QuantizerAdapter, sizes_of_weights
from .registry import ADAPTERS

log = logging.getLogger("muomni_fast")

CONFIG = "config.json"
# Names of the weights, in the order in which transformers looks for them.
WEIGHTS = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"  # after such a name: which of several files holds what
NORMED = r"(weight|weight_v|parametrizations\.weight\.original1)"  # forms of a weight

GENERATORS = [a for a in ADAPTERS if issubclass(a, GeneratorAdapter) and a.configs]
QUANTIZERS = [a for a in ADAPTERS if issubclass(a, QuantizerAdapter) and a.configs]


def _kind_of(adapter: type[QuantizerAdapter]) -> Kind:
    modules = "|".join([rf"{adapter.layers}\.\d+", *adapter.projections])
    statistics = rf".*\.codebook\.({'|'.join(adapter.statistics)})"
    mark = rf"{adapter.layers}\.0\.codebook\.{adapter.kept[0]}"
    name = f"quantizer of {adapter.family}"
    return Kind(name, rf"(?!{statistics}$)({modules})\..+", mark, statistics, adapter)


GENERATOR = Kind(
    "generator of transformers",
    r"(conv_pre|conv_post|upsampler\.\d+|resblocks\.\d+)\..+",
    rf"upsampler\.0\.{NORMED}",
)
KINDS = [GENERATOR, *map(_kind_of, QUANTIZERS)]
PROJECTED = r"(^|\.)quantizers\.0\.(in_proj|project_in)\."  # searched for: DAC, Higgs Audio


def read_config(folder: Path) -> dict[str, Any] | None:
    """The config of transformers in a folder, if there is one."""
    file = folder / CONFIG
    if not file.is_file():
        return None
    config = _integral(read_json(file, "not a config"))
    return None if type_of(config) is None else config


def _integral(value: Any) -> Any:
    """JSON with integers for numbers without a fraction, as some write 24000.0."""
    if isinstance(value, dict):
        return {name: _integral(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_integral(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def type_of(config: dict[str, Any]) -> Any:
    """The `model_type` that a config of transformers states, or else the class of the model."""
    classes = config.get("architectures")
    first = classes[0] if isinstance(classes, list) and classes else None
    return config.get("model_type", first)


def weights_in(folder: Path) -> Path | None:
    """The file of weights, or the index of several, that transformers would take of a folder."""
    names = [name + ending for name in WEIGHTS for ending in ("", INDEX)]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def known_as(prefix: str, part: str | None) -> bool:
    """Whether what keys begin with is that of the part that was asked for."""
    if part in PARTS:
        return prefix.endswith(PARTS[part])
    return part in (None, prefix)


def short_name(prefix: str) -> str:
    """What to give as `part`."""
    return next((part for part, ending in PARTS.items() if prefix.endswith(ending)), prefix)


def generator(
    path: Path, prefix: str, state: dict[str, Tensor], beside: Sequence[str]
) -> HiFiGANVocoder:
    """A generator of transformers, as the config beside its weights says it is.

    Args:
        path: of the weights.
        prefix: what its keys begin with in the file.
        state: its weights, under its own names.
        beside: other keys with the same prefix, without it.

    Raises:
        CheckpointError: config or weights do not fit; names what.
    """
    file = path.parent / CONFIG
    found = _entries(path, GENERATORS)
    if len(found) != 1:
        types = ", ".join(name for adapter in GENERATORS for name in adapter.configs)
        got = f"{len(found)} of them"
        if not found:
            config = read_config(path.parent)
            got = "none, or no such file" if config is None else shown(type_of(config))
        raise CheckpointError(
            f"{file}: expected the settings of one generator, with a model_type or class of "
            f"{types}; got {got}"
        )
    ((where, adapter, config),) = found

    def make() -> HiFiGANVocoder:
        model = HiFiGANVocoder(**_arguments(adapter, config))
        _require_even(model.config)
        _say_what_is_outside(path, prefix, adapter, config, beside)
        return model

    require_known(path, prefix, GENERATOR, beside, rf"({'|'.join(adapter.outside)})(\..+)?")
    tensors = _renamed(state, {adapter.upsampling: "ups"})
    source = f"{path} at {cut(prefix)!r} ({adapter.upsampling}: ups)"
    return built(make, f"{file}{where}", tensors, source)


def _arguments(adapter: type[GeneratorAdapter], config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `HiFiGANVocoder`, of a config's entries."""
    entries = [name for name in ARGUMENTS if name != "resblock"]
    for name in (*entries, *adapter.bands, "leaky_relu_slope"):
        if name not in config:
            raise ValueError(f"{name}: expected an entry, got none")
    slope = require_number("leaky_relu_slope", config["leaky_relu_slope"])
    if not 0 <= slope < 1:
        raise ValueError(f"leaky_relu_slope: expected 0 <= leaky_relu_slope < 1, got {slope}")
    bands = [require_int(name, config[name], 0, MOST_CHANNELS) for name in adapter.bands]
    return {
        **{name: config[name] for name in entries},
        "resblock": "1",
        "n_mels": require_int(" + ".join(adapter.bands), sum(bands), 1, MOST_CHANNELS),
        "leaky_slope": slope,
        "conv_post_bias": adapter.post_bias,
    }


def _require_even(config: dict[str, Any]) -> None:
    """Where kernel - rate is odd, a level of theirs is a sample longer than its rate times."""
    rates, sizes = config["upsample_rates"], config["upsample_kernel_sizes"]
    if any((size - rate) % 2 for rate, size in zip(rates, sizes, strict=True)):
        raise ValueError(
            "upsample_kernel_sizes: expected each to exceed its upsample_rates by an even number, "
            f"got {shown(sizes)} and {shown(rates)}"
        )


def _say_what_is_outside(
    path: Path,
    prefix: str,
    adapter: type[GeneratorAdapter],
    config: dict[str, Any],
    beside: Sequence[str],
) -> None:
    if "mean" in adapter.outside and require_bool(
        "normalize_before", config.get("normalize_before", True)
    ):
        log.warning(
            "%s: its model normalises mels: give the generator (mel - mean) / scale, of the file's "
            "%smean and %sscale",
            *(path, prefix, prefix),
        )
    speakers = config.get("speaker_embedding_size") or any(
        name.startswith("cond.") for name in beside
    )
    if "cond" in adapter.outside and speakers:
        log.warning(
            "%s: its model has speakers: give the generator addends=[cond(speaker)], of the file's "
            "%scond",
            *(path, prefix),
        )


def quantizer(
    adapter: type[QuantizerAdapter], path: Path, prefix: str, state: dict[str, Tensor]
) -> RVQ:
    """A family's quantizer; arguments as of `generator`. Sizes that no config beside the weights
    states are those of the weights."""
    tensors = _rvq_state(adapter, path, prefix, state)
    sizes, blamed = sizes_of_weights(path, tensors), str(path)
    found = _entries(path, [adapter])
    if len(found) == 1:
        ((where, _, config),) = found
        blamed = f"{path.parent / CONFIG}{where}"
        with blaming(blamed):
            sizes |= adapter.sizes(config, prefix)
    renamed = [f"{adapter.layers}.N.codebook: codebooks.N"]
    renamed += [f"{own}: {ours}" for own, ours in _projections(adapter).items()]
    source = f"{path} at {cut(prefix)!r} ({', '.join(renamed)})"
    return built(lambda: RVQ(**sizes), blamed, tensors, source)


def _rvq_state(
    adapter: type[QuantizerAdapter], path: Path, prefix: str, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """A family's weights under the names of `RVQ`; what is of no use there, as it is."""
    books: dict[str, dict[str, Tensor]] = {}
    others = {}
    for name, value in state.items():
        match = re.fullmatch(rf"{adapter.layers}\.(\d+)\.codebook\.(\w+)", name)
        if match and match[2] in adapter.kept:
            books.setdefault(match[1], {})[match[2]] = value
        elif name.split(".")[0] in adapter.projections and value.shape[2:] == (1,):
            others[name] = value[..., 0]  # a convolution of a single tap
        else:
            others[name] = value
    wrong = []
    for number, book in books.items():
        where = f"{cut(prefix)}{adapter.layers}.{cut(number)}.codebook"
        wrong += [f"lacks {where}.{name}" for name in adapter.kept if name not in book]
        first, *rest = (tuple(book[name].shape) for name in adapter.kept if name in book)
        if rest and not all(len(first) == 2 and shape == first[:1] for shape in rest):
            got = ", ".join(f"{name} {tuple(value.shape)}" for name, value in book.items())
            wrong.append(f"{where}: expected (K, D) and (K,), got {got}")
    if wrong:
        raise CheckpointError(f"{path}: does not fit the model: {', '.join(sorted(wrong))}")
    tensors = {
        f"codebooks.{number}.weight": adapter.codewords(SimpleNamespace(**book))
        for number, book in books.items()
    }
    return tensors | _renamed(others, _projections(adapter))


def _projections(adapter: type[QuantizerAdapter]) -> dict[str, str]:
    return dict(zip(adapter.projections, ("proj_in", "proj_out"), strict=False))


def _renamed(state: dict[str, Tensor], modules: dict[str, str]) -> dict[str, Tensor]:
    """Other names for the outermost modules of a state dict."""
    split = {name: name.partition(".") for name in state}
    return {modules.get(s[0], s[0]) + s[1] + s[2]: state[name] for name, s in split.items()}


def _entries(path: Path, adapters: list[Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    """Where the config beside weights has settings of such families, with adapter and settings: as
    a whole, or as an entry, where the model is one of several in another."""
    config = read_config(path.parent)
    if config is None:
        return []
    levels = [("", config)]
    levels += [(f": {name}", inner) for name, inner in config.items() if isinstance(inner, dict)]
    return [
        (where, adapter, settings)
        for where, settings in levels
        for adapter in adapters
        if type_of(settings) in adapter.configs
    ]
