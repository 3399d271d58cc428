"""Classes of projects that no package has: HiFi-GAN's own generator, and micro-Omni's codec.

Where MUOMNI_PEERS_DIR is set they come from the projects' sources in that folder, laid out as
`git clone` leaves them: `hifi-gan/models.py`, `micro-Omni/omni/codec.py`. A project that is not
there, and all where it is unset, have stand-ins.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from family_models import Family
from torch import Tensor, nn

from support import micro_omni, models

VARIABLE = "MUOMNI_PEERS_DIR"
SOURCES = {"hifi-gan": "models", "micro-Omni": "omni.codec"}
# What both have besides: HiFi-GAN's blocks have three dilations in its sources.
SIZES: dict[str, Any] = dict(
    upsample_initial_channel=16,
    upsample_rates=[4, 2],
    upsample_kernel_sizes=[8, 4],
    resblock_kernel_sizes=[3, 5],
    resblock_dilation_sizes=[[1, 2, 3], [1, 2, 3]],
)


class Settings(dict[str, Any]):
    """What HiFi-GAN's own code reads its config into: a dict whose items are attributes."""

    def __init__(self, *items: Any, **more: Any) -> None:
        super().__init__(*items, **more)
        self.__dict__ = self


def sources(project: str) -> Any:
    """A project's own module, or None where its stand-in is used.

    Raises:
        FileNotFoundError: the folder that is named holds no project at all.
    """
    if VARIABLE not in os.environ:
        return None
    root = Path(os.environ[VARIABLE])
    files = {name: root / name / f"{m.replace('.', '/')}.py" for name, m in SOURCES.items()}
    if not any(file.is_file() for file in files.values()):
        raise FileNotFoundError(f"{VARIABLE}: expected {' or '.join(map(str, files.values()))}")
    if not files[project].is_file():
        return None
    others = {name: sys.modules.pop(name) for name in ("utils",) if name in sys.modules}
    with contextlib.ExitStack() as stack:
        stack.callback(sys.modules.update, others)
        stack.callback(sys.modules.pop, "utils", None)  # HiFi-GAN's, by a name of anybody's
        sys.path.insert(0, str(root / project))
        stack.callback(sys.path.remove, str(root / project))
        return importlib.import_module(SOURCES[project])


def generator(resblock: str = "1", folded: bool = True) -> Any:
    """HiFi-GAN's; `folded` after `remove_weight_norm`, as it is run."""
    own = sources("hifi-gan")
    if own is None:
        stand_in = models.Generator(models.PairedBlock if resblock == "1" else models.SingleBlock)
        return stand_in if folded else models.normed(stand_in)
    found = own.Generator(Settings(SIZES, resblock=resblock))
    with torch.no_grad():
        for parameter in found.parameters():  # 0.01 at first, and silence after five convolutions
            parameter.mul_(10 if parameter.ndim > 1 else 1)
    if folded:
        found.remove_weight_norm()
    return found


def vocoder() -> Any:
    """micro-Omni's `HiFiGANVocoder`."""
    own = sources("micro-Omni")
    return micro_omni.HiFiGANVocoder() if own is None else own.HiFiGANVocoder(n_mels=6, **SIZES)


def quantizer() -> Any:
    """micro-Omni's `RVQ`."""
    own = sources("micro-Omni")
    return micro_omni.RVQ() if own is None else own.RVQ(codebook_size=16, d=8)


def micro_omnis(name: str) -> Any:
    """A class of micro-Omni's by its name."""
    own = sources("micro-Omni")
    return getattr(micro_omni if own is None else own, name)


def _latents(part: Any, frames: int) -> dict[str, tuple[Any, ...]]:
    return {"forward": (torch.randn(2, part.conv_pre.in_channels, frames),)}


def _with_speaker(part: Any, frames: int) -> dict[str, tuple[Any, ...]]:
    return {"forward": (*_latents(part, frames)["forward"], torch.randn(2, 3, 1))}


def _rows(part: Any, frames: int) -> dict[str, tuple[Any, ...]]:
    x = torch.randn(2, frames, part.proj_in.in_features)
    return {"encode": (x,), "decode": (part.encode(x)[0],)}


def _columns(part: Any, frames: int) -> dict[str, tuple[Tensor]]:
    return {"forward": (torch.randn(2, part.in_channels, frames, 3),)}


def _family(
    name: str, make: Callable[[], nn.Module], inputs: Callable[..., Any], part: str = ""
) -> Family:
    return Family(name, "this library's tests", lambda small: make().eval(), part, inputs, False)


FAMILIES = [
    _family("HiFi-GAN", generator, _latents),
    _family("HiFi-GAN, type 2", lambda: generator("2"), _latents),
    _family("HiFi-GAN, speakers", lambda: models.Generator(speakers=3), _with_speaker),
    _family("micro-Omni vocoder", vocoder, _latents),
    _family("micro-Omni quantizer", quantizer, _rows),
    _family(
        "discriminators",
        lambda: micro_omnis("MultiPeriodDiscriminator")([2, 3]),
        _columns,
        "discriminators.1.convs.1",
    ),
]
