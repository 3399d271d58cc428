"""A finished quantizer that mels go through: what a vocoder is given where codes are decoded."""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import muomni_fast.reference as reference_backend

from ..audio.mel import require_same_mel
from ..checkpoint import restore
from ..codec import decode_mel, encode_mel, require_pooled
from ..errors import CheckpointError, TrainingError
from ..reading import blaming
from ..rvq.digest import quantizer_digest
from .config import TrainConfig
from .run_folder import RunFolder

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


def quantizer_checkpoint(place: str | Path) -> Path:
    """The absolute path of a quantizer's checkpoint, from that or the run that made it.

    Raises:
        CheckpointError: `place` is a folder, but not of a run.
        TrainingError: the run has not finished its quantizer, so that it will still change.
    """
    path = Path(place).resolve()
    if path.is_dir():
        folder = RunFolder.existing(path)
    else:
        folder = RunFolder(path.parent.parent)
        if path != folder.model(KIND) or not folder.config.is_file():
            return path  # of no run
    if KIND not in folder.results():
        raise TrainingError(
            f"{place}: has not finished its quantizer; --resume {folder.path} --stage {KIND}"
        )
    return folder.model(KIND)


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
        for name, default in (("frames_per_code", 1), ("pooling", "mean")):
            theirs, ours = saved.extra.get(name, default), getattr(config, name)
            if theirs != ours:
                raise ValueError(
                    f"the quantizer has {name} = {theirs}, the run {ours}; give "
                    f"--{name.replace('_', '-')} {theirs}"
                )
        require_pooled(rvq.n_mels, config.mel.n_mels, config.frames_per_code, config.pooling)
    codec = MelCodec(rvq, config.frames_per_code, config.pooling)
    if digest not in (None, codec.digest):
        raise CheckpointError(
            f"{path}: holds another quantizer than the run was begun with: its digest is "
            f"{codec.digest}, not {digest}"
        )
    return codec
