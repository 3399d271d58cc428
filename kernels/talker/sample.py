"""Fused drawing of codes: a class for each codebook, what ends and is padded, the next embedding.

A program draws the codes of one item: of each codebook in turn it loads the logits, adds noise and
takes the largest, applies the delay pattern, and adds the code's embedding to the sum that the next
step reads. So a step of any number of codebooks ends in one launch, and nothing is looked at by the
host: how far an item is, and where it ended, are numbers on the device.

Noise is -log(exponential): the largest of logits / temperature with it is a draw from their softmax
(Gumbel-max), the same draw as the largest probability / exponential, without a softmax. It depends
on seed, step, item, codebook and class alone (Philox; Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", 2011), so that a launch that is repeated draws the same.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..launch import MAX_REGISTERS, power_of_two, start

# A row of logits, and one of an embedding, stay on chip.
LARGEST_ROW = 8192
VALUES_PER_WARP = 512  # of the longer of both rows; one warp alone needs no barriers
MOST_WARPS = 8


@triton.jit
def _noise(seed, o_k, q, item, step):
    """-log of exponential times, one for each class; never infinite."""
    zeros = o_k * 0
    bits, _, _, _ = tl.philox(
        seed, o_k, zeros + q, zeros + item.to(tl.int32), zeros + step.to(tl.int32)
    )
    uniform = tl.maximum(tl.uint_to_uniform_float(bits), 1e-10)  # it can be 0, and is below 1
    return -tl.log(-tl.log(uniform))


# Not compiled for what differs from one generation to the next.
@triton.jit(do_not_specialize=["Q", "max_frames", "temperature", "seed"])
def _sample_kernel(
    logits_ptr,  # (B, Q, K + 1)
    table_ptr,  # (Q * (K + 2), D)
    step_ptr,  # (1) int64
    end_ptr,  # (B) int64, read and written
    row_ptr,  # (B, Q) int64
    x_ptr,  # (B, D)
    Q,
    max_frames,
    temperature,
    seed,
    K: tl.constexpr,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DRAW: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    o_k = tl.arange(0, BLOCK_K)
    o_d = tl.arange(0, BLOCK_D)
    step = tl.load(step_ptr)
    end = tl.load(end_ptr + item)

    x = tl.zeros([BLOCK_D], tl.float32)
    for q in tl.range(0, Q):
        p_logits = logits_ptr + (item * Q + q) * (K + 1) + o_k
        scores = tl.load(p_logits, mask=o_k <= K, other=float("-inf"))
        if DRAW:
            scores = scores / temperature + _noise(seed, o_k, q, item, step)
        code = tl.argmax(scores, 0)  # the lowest of equal ones
        ends = (q == 0) & (code == K) & (end > step)
        end = tl.where(ends, step, end)
        frame = step - q  # whose code this is
        out = (frame < 0) | (frame >= tl.minimum(end, max_frames))
        code = tl.where(out, K + 1, code).to(tl.int64)  # PAD
        tl.store(row_ptr + item * Q + q, code)
        p_words = table_ptr + (q * (K + 2) + code) * D + o_d
        x += tl.load(p_words, mask=o_d < D, other=0.0)
    tl.store(end_ptr + item, end)
    tl.store(x_ptr + item * D + o_d, x, mask=o_d < D)


def sample(
    logits: Tensor,
    table: Tensor,
    step: Tensor,
    end: Tensor,
    row: Tensor,
    x: Tensor,
    max_frames: int,
    temperature: float,
    seed: int,
) -> None:
    """Draw a step's codes and embed them, in place; all tensors contiguous, on one device.

    Args:
        logits: (B, Q, K + 1) float32; minus infinity where a class cannot be drawn. At most
            LARGEST_ROW classes.
        table: (Q * (K + 2), D) float32, embeddings of all codebooks; D at most LARGEST_ROW.
        step: one int64, which step of codes this is; at most 2^31 - 1.
        end: (B,) int64, the step at which each item's first codebook ended, any number above
            `max_frames` where it has not. Written where one ends now: class K of codebook 0.
        row: (B, Q) int64, written: codes, and PAD (K + 1) where an item has none at this step.
        x: (B, D) float32, written: sums of the row's embeddings over codebooks, added in their
            order in float32.
        max_frames: frames that an item has at most.
        temperature: that logits are divided by; 0 takes the largest, the lowest of equal ones.
        seed: of what is drawn, 0 ... 2^63 - 1.
    """
    batch, n_codebooks, classes = logits.shape
    if batch == 0:
        return
    start(
        _sample_kernel,
        batch,
        logits,
        logits_ptr=logits,
        table_ptr=table,
        step_ptr=step,
        end_ptr=end,
        row_ptr=row,
        x_ptr=x,
        Q=n_codebooks,
        max_frames=max_frames,
        temperature=float(temperature),
        seed=seed,
        **sample_constants(classes, x.shape[1]),
        DRAW=temperature > 0,
        maxnreg=MAX_REGISTERS,
        enable_fp_fusion=True,
    )


def sample_constants(classes: int, dim: int) -> dict[str, int]:
    """What a launch is compiled for, besides DRAW."""
    block_k, block_d = power_of_two(classes), power_of_two(dim)
    warps = max(block_k, block_d) // VALUES_PER_WARP
    return {
        "K": classes - 1,
        "D": dim,
        "BLOCK_K": block_k,
        "BLOCK_D": block_d,
        "num_warps": min(MOST_WARPS, max(1, warps)),
    }
