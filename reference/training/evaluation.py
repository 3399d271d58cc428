"""A trained quantizer on held-out speech, beside faiss's of the same size."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import muomni_fast.reference as backend

from ..audio.mel import pool_frames
from ..packages import installing
from .clips import find_clips, split_clips
from .data import SpeechDataset, read_held_out
from .run import load_product, source_of
from .run_folder import RunFolder
from .rvq_stage import START_FRAMES, validate_rvq


class FaissQuantizer:
    """faiss.ResidualQuantizer behind the two calls of `RVQ` that a measurement needs.

    Args:
        frames: (N, n_mels) float32 to fit.
        n_codebooks: residual steps.
        codebook_size: codes each, a power of two.
        beam: of encoding; 1 is greedy, as in `RVQ`.

    Raises:
        ValueError: `codebook_size` is not a power of two; there are too few frames to fit it on;
            or faiss is not installed.
    """

    def __init__(self, frames: Tensor, n_codebooks: int, codebook_size: int, beam: int = 1) -> None:
        try:
            import faiss
        except ImportError as error:
            raise ValueError(f"faiss: {error}; {installing('peers')}") from error
        self.bits = codebook_size.bit_length() - 1
        if 1 << self.bits != codebook_size:
            raise ValueError(f"codebook_size: faiss needs a power of two, got {codebook_size}")
        least = max(codebook_size, frames.shape[1])
        if len(frames) < least:
            raise ValueError(f"frames: faiss needs at least {least} to fit on, got {len(frames)}")
        self.n_codebooks, self.codebook_size = n_codebooks, codebook_size
        self.quantizer = faiss.ResidualQuantizer(frames.shape[1], n_codebooks, self.bits)
        self.quantizer.max_beam_size = beam
        self.quantizer.train(np.ascontiguousarray(frames.numpy()))
        codebooks = faiss.vector_to_array(self.quantizer.codebooks)
        self.codebooks = torch.from_numpy(codebooks.reshape(n_codebooks, codebook_size, -1))

    def encode(self, mel: Tensor) -> Tensor:
        """(N, n_mels) float32 -> (N, n_codebooks) int64."""
        import faiss

        packed = self.quantizer.compute_codes(np.ascontiguousarray(mel.numpy()))
        codes = faiss.unpack_bitstrings(packed, self.n_codebooks, self.bits)
        return torch.from_numpy(codes.astype(np.int64))

    def decode(self, codes: Tensor) -> Tensor:
        """(N, n_codebooks) -> (N, n_mels)."""
        return sum((self.codebooks[q][c] for q, c in enumerate(codes.unbind(-1))), torch.zeros(()))


def evaluate(
    folder: RunFolder, data: str | None, against: str | None
) -> dict[str, dict[str, float]]:
    """Held-out figures by quantizer: "trained", and "faiss greedy" if asked for."""
    config, run = folder.read_config()
    source = source_of(run) if data is None else Path(data)
    training, held_out, _ = split_clips(find_clips(source), run["split"])
    mels = [mel for _, _, mel in read_held_out(held_out, config.mel)]
    rvq: Any = load_product(folder, "rvq", config, backend)
    pooled = config.frames_per_code, config.pooling
    figures = {"trained": validate_rvq(rvq, mels, *pooled)}
    if against == "faiss":
        dataset = SpeechDataset(training, config.mel, config.segment_samples, 1, config.seed)
        frames = pool_frames(dataset.frames(START_FRAMES), *pooled)
        faiss_rvq = FaissQuantizer(frames, rvq.n_codebooks, rvq.codebook_size)
        figures["faiss greedy"] = validate_rvq(faiss_rvq, mels, *pooled)
    return figures
