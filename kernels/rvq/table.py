"""What the search takes of codebooks: a table of centred codewords, and what bounds their scores.

With any centre m and scale s of a codebook, the codeword nearest to a row x has the lowest

    score = bias + x . word,  word = s (m - c),  bias = s (||c||^2 - ||m||^2) / 2,

which is s ||x - c||^2 / 2 less what all codewords share. Its error grows with the length of words
(`certificate.py`), and a centre in their midst makes them short. The scale, a power of two, makes
the largest number of a codebook about one, so that products of tiny codewords with tiny rows do not
underflow, nor those of huge ones overflow.

A table is twice as long as its codebook. The first half is what torch's products take, a column for
each code: read in order, which for a single frame takes half the time that rows would. The second
is what the kernel reads, laid out as it reads it: all words, rounded to TF32, then all biases, all
radii and so on.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from .certificate import WORDS_LOST

EXPONENT_BITS = 0x7F800000  # of a float32
LARGEST_SCALE = 2.0**80  # so that rows far longer than the codewords do not overflow
# Added to radius and |bias|, so that E covers what underflow can lose of a score: 8 D (1 + ||x||)
# 2^-126, where E is beta (||x|| radius + |bias|), and D < 2^24 beta.
UNDERFLOW_MARGIN = 2.0**-98


@functools.cache
def table_width(dim: int) -> int:
    """Columns of a table: codebook_dim and four, and more so that rows are read in wide pieces."""
    return -(-(dim + 4) // 4) * 4


def search_table(codebooks: Tensor, *, mark_repeats: bool) -> Tensor:
    """What scores are taken of: (..., K, D) -> (..., 2, K, W).

    The first half is `row_table` transposed, W times K numbers, the second `kernel_table`.

    Args:
        codebooks, mark_repeats: as `row_table` takes them.
    """
    rows = row_table(codebooks, mark_repeats=mark_repeats)
    columns = rows.transpose(-1, -2).reshape(rows.shape)
    return torch.stack([columns, kernel_table(rows, codebooks.shape[-1])], -3)


@torch.no_grad()
def row_table(codebooks: Tensor, *, mark_repeats: bool) -> Tensor:
    """What float32 scores are taken of.

    Args:
        codebooks: (..., K, D), finite; half precision is upcast to float32.
        mark_repeats: give codewords that repeat an earlier one, which can never be a code, a
            radius of minus infinity, so that their lower bounds are infinite. On a GPU this waits
            for the device.

    Returns:
        (..., K, W), W = table_width(D): D columns of the word, then bias, radius, size and the
        codebook's scale, then zeros. The radius is ||word||, rounded up; the size |bias| and, of a
        centre far away, what float64 loses there and counts as equal.
    """
    codebooks = codebooks.float()
    dim = codebooks.shape[-1]
    table = codebooks.new_zeros(*codebooks.shape[:-1], table_width(dim))
    words = table[..., :dim]
    bias, radius, size, scales = table[..., dim : dim + 4].unbind(-1)

    largest = codebooks.abs().amax((-2, -1), keepdim=True)
    scale = (largest.view(torch.int32) & EXPONENT_BITS).view(torch.float32)
    scale = scale.clamp_(1 / LARGEST_SCALE).where(largest > 0, 1.0).reciprocal_()
    torch.mul(codebooks, scale, out=words)  # for now scaled codewords
    norms = torch.linalg.vector_norm(words, dim=-1, dtype=torch.float64)  # (..., K)
    # The mean of what is not much longer than most: one long codeword would move it from the rest.
    median = norms.sort(-1).values[..., (norms.shape[-1] - 1) // 2, None]
    usual = (norms <= 2 * median).float()[..., None]
    centre = (usual * words).sum(-2, keepdim=True) / usual.sum(-2, keepdim=True)  # (..., 1, D)
    shared = torch.linalg.vector_norm(centre, dim=-1, dtype=torch.float64)  # (..., 1)
    twice = 2 * scale.squeeze(-1).double()
    bias.copy_((norms.square() - shared.square()) / twice)
    torch.sub(centre, words, out=words)
    norms = torch.linalg.vector_norm(words, dim=-1, dtype=torch.float64)
    radius.copy_(norms * (1 + 2.0**-22) + UNDERFLOW_MARGIN)
    far = (shared.square() / twice).float() * ((dim + 5) * 2.0**-28)
    size.copy_(bias.abs() + far + UNDERFLOW_MARGIN)
    scales.copy_(scale.squeeze(-1))
    if mark_repeats:
        radius.masked_fill_(repeats(codebooks), -torch.inf)
    return table


@torch.no_grad()
def kernel_table(rows: Tensor, dim: int) -> Tensor:
    """What the kernel takes scores of: of `row_table`'s (..., K, W), as many numbers in its order.

    Words of W - 4 columns, K of each; then biases, radii, sizes and scales, K each. Radii are
    raised where a word lost more by rounding than WORDS_LOST of its radius.
    """
    words = rows[..., :dim]
    rounded = to_tf32(words)
    least = torch.linalg.vector_norm((words - rounded).double(), dim=-1) * (1.001 / WORDS_LOST)
    columns = rows[..., dim : dim + 4].clone()
    radius = columns[..., 1]
    radius.copy_(torch.where(radius < 0, radius, radius.maximum(least.float())))
    padded = F.pad(rounded, (0, rows.shape[-1] - 4 - dim))
    parts = padded.flatten(-2), columns.transpose(-1, -2).flatten(-2)
    return torch.cat(parts, -1).reshape(rows.shape)


def to_tf32(x: Tensor) -> Tensor:
    """The nearest numbers with 10 bits of fraction, of finite float32."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def repeats(codebooks: Tensor) -> Tensor:
    """Which codewords equal one of a lower index: (..., K, D) -> (..., K) bool."""
    *lead, size, dim = codebooks.shape
    order = torch.arange(size, device=codebooks.device)
    found = []
    for codebook in codebooks.reshape(-1, size, dim):
        unique, which = (codebook + 0.0).unique(dim=0, return_inverse=True)  # -0.0 equals 0.0
        first = order.new_full((len(unique),), size).scatter_reduce_(0, which, order, "amin")
        found.append(first[which] != order)
    return torch.stack(found).reshape(*lead, size)
