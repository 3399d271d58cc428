"""What the Talker is built of: blocks, rotary positions, and the cache of what was read.

Pre-norm blocks with RMSNorm (Zhang and Sennrich, 2019), rotary positions (Su et al., "RoFormer",
2021, section 3.4) and SwiGLU (Shazeer, 2020), without biases.
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROTARY_BASE = 10_000.0
EPSILON = 1e-6  # of norms


@dataclasses.dataclass
class Cache:
    """Keys and values of the positions that items have, of fixed size.

    Attributes:
        keys, values: (n_layers, B, L, n_heads, head_dim).
        rotary: cosines and sines of L positions, as `rotary_table` gives them.
        position: (B,) int64, where an item's next one goes.
        filled: the greatest of them, a number that needs no look at a GPU.
    """

    keys: Tensor
    values: Tensor
    rotary: tuple[Tensor, Tensor]
    position: Tensor
    filled: int

    def next_place(self) -> "Place":
        """The position that comes next; what follows on it in the cache goes on from there."""
        position, self.position = self.position, self.position + 1
        self.filled += 1
        cosine, sine = (table.index_select(0, position) for table in self.rotary)
        keys, values = (kept[:, :, : self.filled].unbind() for kept in (self.keys, self.values))
        items = torch.arange(len(position), device=position.device)
        mask = unseen(position, self.filled, cosine.dtype) if len(position) > 1 else None
        return Place((items, position), keys, values, (cosine, sine), mask)


class Place(NamedTuple):
    """Where a batch's next position is: what all blocks of a step need to know of it.

    Attributes:
        places: items 0 ... B - 1 and their positions, (B,) int64 both.
        keys, values: of each layer, (B, filled, n_heads, head_dim), up to the greatest of these
            positions; parts of the cache, to be written into.
        rotary: cosines and sines of the positions, (B, 1, 1, head_dim).
        mask: what is added to the scores of attention, as `unseen` gives it; None where one item
            is alone, whose positions are all its own.
    """

    places: tuple[Tensor, Tensor]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    rotary: tuple[Tensor, Tensor]
    mask: Tensor | None


def unseen(position: Tensor, filled: int, dtype: torch.dtype) -> Tensor:
    """(B, 1, 1, filled), minus infinity beyond an item's own position (B,), else zero.

    Items are unequally far, and what lies beyond is none of theirs. Numbers, for torch would make
    them of booleans in every layer.
    """
    beyond = torch.arange(filled, device=position.device) > position[:, None]
    mask = torch.zeros(beyond.shape, dtype=dtype, device=position.device)
    return mask.masked_fill_(beyond, -torch.inf)[:, None, None]


class Block(nn.Module):
    """Attention, then SwiGLU, each on what RMSNorm makes of the sum so far."""

    def __init__(self, dim: int, n_heads: int, hidden_dim: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.RMSNorm(dim, eps=EPSILON)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp_norm = nn.RMSNorm(dim, eps=EPSILON)
        self.gate_up = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """All positions at once: (B, L, D) -> (B, L, D), and keys and values to cache, both
        (B, L, n_heads, head_dim)."""
        query, key, value = self._heads(x, rotary)
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), is_causal=True
        )  # (B, H, L, head_dim)
        return self._join(x, attended.transpose(1, 2).flatten(2)), key, value

    def step(self, x: Tensor, at: Place, layer: int) -> Tensor:
        """The next position of each item: (B, D) -> (B, D); writes into the cache."""
        query, key, value = self._heads(x, at.rotary)  # (B, H, head_dim)
        keys, values = at.keys[layer], at.values[layer]
        keys.index_put_(at.places, key.to(keys.dtype))
        values.index_put_(at.places, value.to(values.dtype))
        attended = F.scaled_dot_product_attention(
            query[:, :, None], keys.transpose(1, 2), values.transpose(1, 2), attn_mask=at.mask
        )  # (B, H, 1, head_dim)
        return self._join(x, attended.flatten(1))

    def _heads(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(..., D) -> queries, keys and values, (..., H, head_dim)."""
        packed = self.qkv(rms_norm(x, self.attention_norm)).unflatten(-1, (3, self.n_heads, -1))
        query, key = rotate(packed[..., :2, :, :], rotary).unbind(-3)
        return query, key, packed[..., 2, :, :]

    def _join(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(attended)
        gate, up = self.gate_up(rms_norm(x, self.mlp_norm)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def rms_norm(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """What `norm` gives for (..., D), without the call of a module, which takes half as long as
    the norm of one position."""
    return F.rms_norm(x, norm.weight.shape, norm.weight, EPSILON)


def rotary_table(length: int, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """What `rotate` takes for positions 0 ... length - 1: both (length, 1, 1, head_dim), dtype of
    `like`.

    A pair (i, i + head_dim / 2) has its cosine twice, and its sine once negative, once positive.
    """
    exponents = torch.arange(0, head_dim, 2, device=like.device, dtype=torch.float32) / head_dim
    positions = torch.arange(length, device=like.device, dtype=torch.float32)
    angles = torch.outer(positions, ROTARY_BASE**-exponents)
    cosine, sine = angles.cos(), angles.sin()
    tables = torch.cat([cosine, cosine], 1), torch.cat([-sine, sine], 1)
    cosines, sines = (table[:, None, None].to(like.dtype) for table in tables)
    return cosines, sines


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs (i, i + head_dim / 2) of queries or keys (..., head_dim) by their angles."""
    cosines, sines = rotary
    return torch.addcmul(x * cosines, x.roll(x.shape[-1] // 2, -1), sines)
