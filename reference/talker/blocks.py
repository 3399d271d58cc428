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
    """Keys and values of the positions that an item has, of fixed size.

    Attributes:
        keys, values: of each layer, (B, n_heads, L, head_dim).
        rotary: cosines and sines of L positions.
        position: (B,) int64, where an item's next one goes.
        filled: positions that any item may have, a number that needs no look at a GPU.
    """

    keys: list[Tensor]
    values: list[Tensor]
    rotary: tuple[Tensor, Tensor]
    position: Tensor
    filled: int

    def next_place(self) -> "Place":
        """The position that comes next."""
        device, filled = self.position.device, self.filled + 1
        cosine, sine = (table[self.position][:, None, None] for table in self.rotary)
        seen = torch.arange(filled, device=device) <= self.position[:, None]
        items = torch.arange(len(self.position), device=device)
        return Place(items, self.position, filled, seen[:, None, None], (cosine, sine))


class Place(NamedTuple):
    """Where a batch's next position is: what all blocks of a step need to know of it.

    Attributes:
        items: (B,), 0 ... B - 1.
        position: (B,) int64.
        filled: one more than the greatest position there may be.
        seen: (B, 1, 1, filled) bool: items are unequally far, and what lies beyond an item's own
            position is none of its own.
        rotary: cosines and sines of the positions, (B, 1, 1, head_dim / 2).
    """

    items: Tensor
    position: Tensor
    filled: int
    seen: Tensor
    rotary: tuple[Tensor, Tensor]


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
        """All positions at once: (B, L, D) -> (B, L, D), and keys and values to cache."""
        query, key, value = self._heads(x, rotary)
        x = self._join(x, F.scaled_dot_product_attention(query, key, value, is_causal=True))
        return x, key, value

    def step(self, x: Tensor, at: "Place", keys: Tensor, values: Tensor) -> Tensor:
        """The next position of each item: (B, 1, D) -> (B, 1, D); writes into the cache."""
        query, key, value = self._heads(x, at.rotary)
        keys[at.items, :, at.position] = key[:, :, 0].to(keys.dtype)
        values[at.items, :, at.position] = value[:, :, 0].to(values.dtype)
        attended = F.scaled_dot_product_attention(
            query, keys[:, :, : at.filled], values[:, :, : at.filled], attn_mask=at.seen
        )
        return self._join(x, attended)

    def _heads(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, dim = x.shape
        packed = self.qkv(self.attention_norm(x))
        packed = packed.view(batch, length, 3, self.n_heads, dim // self.n_heads)
        packed = packed.permute(2, 0, 3, 1, 4)  # (3, B, H, L, head_dim)
        query, key = rotate(packed[:2], rotary)
        return query, key, packed[2]

    def _join(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def rotary_table(length: int, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0 ... length - 1: (length, head_dim / 2), dtype of `like`."""
    exponents = torch.arange(0, head_dim, 2, device=like.device, dtype=torch.float32) / head_dim
    positions = torch.arange(length, device=like.device, dtype=torch.float32)
    angles = torch.outer(positions, ROTARY_BASE**-exponents)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs (i, i + head_dim / 2) of queries or keys (..., head_dim) by their angles."""
    cosine, sine = rotary
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)
