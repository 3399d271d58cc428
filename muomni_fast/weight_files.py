"""Files of weights that others have written, and the quantizer or generator that is found in one.

Parts are found by their keys: HiFi-GAN's own and this library's here, those of other libraries'
models in `compat.pretrained`.
"""

import collections
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .compat import pretrained
from .compat.parts import Kind, built, require_known
from .compat.pretrained import INDEX, NORMED
from .compat.quantizers import sizes_of_weights
from .reference.checks import require_hop
from .reference.errors import CheckpointError
from .reference.reading import blaming, read_json, read_layout, read_tensors
from .reference.values import (
    MOST_NAMED,
    cut,
    listed,
    require_dict,
    require_text,
    shown,
)
from .reference.vocoder.published import (
    ARGUMENTS,
    foreign_state,
    generator_arguments,
    plain_tensors,
)
from .rvq.modules import RVQ
from .vocoder.modules import HiFiGANVocoder

log = logging.getLogger("muomni_fast")

MOST_LEFT_OUT = 32  # modules that the log names
SUFFIXES = ".safetensors", ".pt", ".pth", ".bin", ".ckpt"
SHARD = r"[^/\\\0]{1,200}\.(safetensors|bin)"  # a file beside its index, in no other folder
RVQ_KIND = Kind("rvq", r"(codebooks\.\d+|proj_in|proj_out)\..+", r"codebooks\.0\.weight")
VOCODER_KIND = Kind(
    "vocoder",
    r"(conv_pre|conv_post|ups\.\d+|resblocks\.\d+)\..+",
    rf"ups\.0\.(0\.)?{NORMED}",  # in a list each, in BigVGAN: no generator that fits
)
NOT_YET = "a quantizer whose every codebook has projections of its own: not yet"
KINDS = [RVQ_KIND, VOCODER_KIND, *pretrained.KINDS]


class WeightFile:
    """A file of weights, or the index of several, of which only what is asked for is read.

    Attributes:
        path: of the file.
        names: of what it holds.

    Raises:
        CheckpointError: it cannot be read safely, or is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state: dict[Any, Any] | None = None
        self._shards: dict[str, Path] = {}
        if path.name.endswith(INDEX):
            self._shards = _shards(path)
            self.names = [*self._shards]
        elif path.suffix == ".safetensors":
            self.names = [*read_layout(path)]
        else:
            self._state = foreign_state(path)
            self.names = [name for name in self._state if isinstance(name, str)]

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Some of the weights, half precision ones as float32."""
        if self._shards:
            found: dict[str, Tensor] = {}
            wanted = collections.defaultdict(list)
            for name in names:
                wanted[self._shards[name]].append(name)
            for file, own in wanted.items():
                shard = WeightFile(file)
                held = set(shard.names)
                lacking = [name for name in own if name not in held]
                if lacking:
                    said = f"of which {self.path.name} says that it holds them"
                    raise CheckpointError(f"{file}: lacks {listed(lacking)}, {said}")
                found |= shard.read(own)
            return found
        if self._state is not None:
            return plain_tensors(self.path, {name: self._state[name] for name in names})
        return plain_tensors(self.path, read_tensors(self.path, names))


def _shards(index: Path) -> dict[str, Path]:
    """The file that each tensor is in."""
    document = read_json(index, "not an index of weights")
    with blaming(index):
        shards = require_dict("weight_map", document.get("weight_map"))
        if not shards:
            raise ValueError("weight_map: expected names of tensors, got none")
        for name, file in shards.items():
            where = f"weight_map: {cut(name)}"
            if not re.fullmatch(SHARD, require_text(where, file)):
                raise ValueError(f"{where}: expected {SHARD}, got {shown(file)}")
    return {name: index.with_name(file) for name, file in shards.items()}


def weights_in(path: Path) -> Path | None:
    """The file of weights in a folder; None if it has neither one nor a config.

    Raises:
        CheckpointError: there are several, or a config alone.
    """
    if pretrained.read_config(path) is not None:
        found = pretrained.weights_in(path)
        if found is not None:
            return found
    files = _weights(path)
    if not files and not configs_in(path):
        return None
    if len(files) != 1:
        names = shown([file.name for file in files])
        raise CheckpointError(f"{path}: expected one file of weights, got {names}; name one")
    return files[0]


def _weights(path: Path) -> list[Path]:
    """Files of weights in a folder; of a training's generators (`g_00001000`), the last; without
    its discriminators."""
    files = [
        file
        for file in sorted(path.iterdir())
        if file.is_file() and (file.suffix in SUFFIXES or re.match("g_|generator", file.name))
    ]
    generators = [file for file in files if re.fullmatch(r"g_\d+", file.name)]
    if not generators:
        return files
    last = max(generators, key=lambda file: int(file.name[2:]))
    return [last, *(file for file in files if file not in generators)]


def configs_in(folder: Path) -> list[Path]:
    """Configs of generators of HiFi-GAN's own code, in a folder."""
    found = []
    for file in sorted(folder.glob("config*.json")):
        config = read_json(file, "not a config")
        if ARGUMENTS[0] in config and pretrained.type_of(config) is None:
            found.append(file)
    return found


def load_part(path: Path, part: str | None) -> nn.Module:
    """The part that a file of weights holds; see `loading.load`."""
    file = WeightFile(path)
    found = sorted(
        {
            (match[1], kind.name): kind
            for kind in KINDS
            for name in file.names
            if (match := re.fullmatch(rf"((?:.*\.)?){kind.mark}", name))
        }.items()
    )
    chosen = [(prefix, kind) for (prefix, _), kind in found if pretrained.known_as(prefix, part)]
    if len(chosen) != 1:
        raise CheckpointError(f"{path}: {_several_or_none(file, [key for key, _ in found], part)}")
    ((prefix, kind),) = chosen
    within = re.compile(kind.inside)
    inside = [
        name
        for name in file.names
        if name.startswith(prefix) and within.fullmatch(name, len(prefix))
    ]
    others = {*file.names} - {*inside}
    beside = sorted(name[len(prefix) :] for name in others if name.startswith(prefix))
    if kind.adapter and any(
        re.search(pretrained.PROJECTED, name[len(prefix) :]) for name in inside
    ):
        raise CheckpointError(f"{path}: {NOT_YET}")
    if kind is not pretrained.GENERATOR and (prefix or kind is not RVQ_KIND):
        require_known(path, prefix, kind, beside)  # theirs depend on its config
    outside = collections.Counter(name.split(".")[0] for name in others)
    state = {name[len(prefix) :]: value for name, value in file.read(inside).items()}
    left_out = [f"left out: {count} of {cut(name)}" for name, count in sorted(outside.items())]
    log.info(
        "%s: a %s, %d tensors at %r%s",
        *(path, kind.name, len(inside), cut(prefix)),
        "".join(f"; {said}" for said in left_out[:MOST_LEFT_OUT]),
    )
    if kind is RVQ_KIND:
        return _quantizer(path, state)
    if kind is VOCODER_KIND:
        return _generator(path, state)
    if kind.adapter is None:
        return pretrained.generator(path, prefix, state, beside)
    return pretrained.quantizer(kind.adapter, path, prefix, state)


def _several_or_none(file: WeightFile, found: list[tuple[str, str]], part: str | None) -> str:
    """Why no part was loaded."""
    if not found and any(re.search(pretrained.PROJECTED, name) for name in file.names):
        return NOT_YET
    asked = "" if part is None else f" at {shown(part)}"
    names = [f"a {kind} at {cut(prefix)!r}" for prefix, kind in found[:MOST_NAMED]]
    advice = ""
    if len(found) > MOST_NAMED:
        names.append(f"{len(found) - MOST_NAMED} more")
    if len(found) > 1:
        parts = [repr(cut(pretrained.short_name(prefix))) for prefix, _ in found[:MOST_NAMED]]
        advice = f"; name its `part`: {' or '.join(parts)}"
    got = ", ".join(names) or "none"
    return f"expected keys of one quantizer or generator{asked}, got {got}{advice}"


def _quantizer(path: Path, state: dict[str, Tensor]) -> RVQ:
    """A quantizer with these weights, which say its sizes."""
    sizes = sizes_of_weights(path, state)
    return built(lambda: RVQ(**sizes), path, state, path)


def _generator(path: Path, state: dict[str, Tensor]) -> HiFiGANVocoder:
    """A generator with these weights, as the config beside them says it is."""
    configs = configs_in(path.parent)
    if len(configs) > 1:
        names = shown([file.name for file in configs])
        raise CheckpointError(f"{path}: expected one config beside it, got {names}")
    if not configs:
        log.info("%s: no config*.json beside it: HiFiGANVocoder's default sizes", path)
        small = HiFiGANVocoder()  # however little the file holds: so that what it lacks is listed
        return built(lambda: small, path, state, path)
    arguments, hop = generator_arguments(configs[0])

    def make() -> HiFiGANVocoder:
        model = HiFiGANVocoder(**arguments)
        require_hop(model.hop_length, hop)
        return model

    return built(make, configs[0], state, path)
