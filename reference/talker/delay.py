"""The delay pattern: codebook q is predicted one step later than codebook q - 1.

Copet et al., "Simple and controllable music generation" (2023), section 2.2. So each code is
predicted from all codes of the frames before it and, in its own frame, from those of the codebooks
before its own. With frames a, b, c and three codebooks:

    step        0    1    2    3    4
    codebook 0  a0   b0   c0   end  PAD
    codebook 1  PAD  a1   b1   c1   PAD
    codebook 2  PAD  PAD  a2   b2   c2

What the Talker reads at a step is the column before it, and BOS in all codebooks at step 0.
"""

import torch
from torch import Tensor

NO_TARGET = -100  # what cross-entropy leaves out


def n_steps(n_frames: int, n_codebooks: int) -> int:
    """Steps that so many frames take, the end of speech among them."""
    return n_frames + max(1, n_codebooks - 1)


def delayed(codes: Tensor, lengths: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """What the Talker reads, and what it is to predict.

    Args:
        codes: (B, S, Q) integers; frames past an item's length may hold anything.
        lengths: (B,) frames of each item.
        codebook_size: K; then BOS is K, PAD K + 1, and the end of speech is class K of codebook 0.

    Returns:
        inputs and targets, both (B, T, Q) int64 with T = n_steps(S, Q); NO_TARGET where there is
        nothing to predict.
    """
    batch, n_frames, n_codebooks = codes.shape
    steps = n_steps(n_frames, n_codebooks)
    frame = torch.arange(steps, device=codes.device)[:, None] - torch.arange(
        n_codebooks, device=codes.device
    )  # (T, Q), the frame whose code is at a step
    within = (frame >= 0) & (frame < lengths[:, None, None])  # (B, T, Q)
    if n_frames:
        index = frame.clamp(0, n_frames - 1).expand(batch, -1, -1)
        grid = codes.long().gather(1, index)
    else:
        grid = codes.new_zeros(batch, steps, n_codebooks, dtype=torch.int64)
    end = frame[:, 0] == lengths[:, None]  # (B, T)
    targets = grid.masked_fill(~within, NO_TARGET)
    targets[..., 0] = targets[..., 0].masked_fill(end, codebook_size)
    inputs = grid.masked_fill(~within, codebook_size + 1)
    first = torch.full_like(inputs[:, :1], codebook_size)
    return torch.cat([first, inputs[:, :-1]], 1), targets


def undelayed(grid: Tensor, n_frames: int) -> Tensor:
    """Frames of a grid of delayed codes: (B, T, Q) -> (B, n_frames, Q)."""
    columns = [grid[:, q : q + n_frames, q] for q in range(grid.shape[2])]
    return torch.stack(columns, 2)
