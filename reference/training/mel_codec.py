"""A finished quantizer that mels go through: what a vocoder is given where codes are decoded."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import muomni_fast.reference as reference_backend

from ..audio.mel import require_same_mel
from ..checkpoint import restore
from ..codec import decode_mel, encode_mel, require_pooled
from ..errors import CheckpointError
from ..reading import blaming
from ..rvq.digest import quantizer_digest
from .config import TrainConfig

KIND = "rvq"


class MelCodec:
    """A frozen quantizer, on the CPU: log-mels go in and come out encoded and decoded.

    Args:
        rvq: the quantizer.
        frames_per_code: mel frames of a code.
        pooling: how they are joined.

    Attributes:
        digest: of the quantizer and how frames become its codes.
    """

    def __init__(self, rvq: Any, frames_per_code: int, pooling: str) -> None:
        self.rvq = rvq.requires_grad_(False)
        self.pooled = frames_per_code, pooling
        self.digest = quantizer_digest(rvq, frames_per_code, pooling)
        if hasattr(rvq, "prepare"):
            rvq.prepare()

    @torch.no_grad()
    def __call__(self, mel: Tensor) -> Tensor:
        """What codes keep of a whole log-mel: (n_mels, T) -> (n_mels, T)."""
        codes = encode_mel(self.rvq, mel.cpu(), *self.pooled)
        return decode_mel(self.rvq, codes, *self.pooled)[:, : mel.shape[1]].contiguous()


def read_mel_codec(
    path: str | Path,
    config: TrainConfig,
    digest: str | None = None,
    backend: ModuleType = reference_backend,
) -> MelCodec:
    """Load the quantizer of a checkpoint.

    Args:
        path: of the `.json`.
        config: of the run that it is for.
        digest: that it must have.
        backend: whose module to load.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of another kind; its mel settings,
            `frames_per_code` or `pooling` are not the run's; it is another quantizer. Names them.
    """
    rvq: Any
    rvq, saved = restore(backend.RVQ, path, KIND)
    with blaming(path):
        require_same_mel(config.mel, saved.mel, "run != quantizer")
        require_same_pooling(saved.extra, config)
        require_pooled(rvq.n_mels, config.mel.n_mels, config.frames_per_code, config.pooling)
    codec = MelCodec(rvq, config.frames_per_code, config.pooling)
    if digest not in (None, codec.digest):
        raise CheckpointError(
            f"{path}: holds another quantizer than the run was begun with: its digest is "
            f"{codec.digest}, not {digest}"
        )
    return codec


def require_same_pooling(extra: Mapping[str, Any], config: TrainConfig) -> None:
    """Raise ValueError where a quantizer's checkpoint joins frames otherwise than a run does.

    Args:
        extra: of the checkpoint.
        config: of the run.
    """
    for name, default in (("frames_per_code", 1), ("pooling", "mean")):
        theirs, ours = extra.get(name, default), getattr(config, name)
        if theirs != ours:
            raise ValueError(
                f"the quantizer has {name} = {theirs}, the run {ours}; give "
                f"--{name.replace('_', '-')} {theirs}"
            )
