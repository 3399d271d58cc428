"""The Talker with a step of fewer operators: dispatching them is what a small model's step costs.

Weights are packed when a generation begins, so that nothing can be out of date: codebooks' tables
one below the other, heads as one product, and gains of norms multiplied into the weights after
them. Keys and values stand side by side, so that one operator writes both.
"""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import reference
from ..backend import choose
from ..reference.checks import full_precision
from ..reference.talker.blocks import EPSILON, Cache, rotate, unseen
from ..reference.talker.generation import Steps
from .steps import KernelSteps

PACKED = torch.float32, torch.float64  # half precision would round what is multiplied together


@dataclasses.dataclass
class PackedBlock:
    """Weights of a block, transposed: (D, 3 D), (D, D), (D, 2 hidden) and (hidden, D)."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


@dataclasses.dataclass
class PackedCache(Cache):
    """A cache that holds the packed weights besides.

    Attributes:
        kept: of each layer, keys and values of all items, one item's positions below another's:
            (B * L, 2, H, head_dim). `keys` and `values` are the same memory.
        blocks: of each layer.
        table: (Q * (K + 2), D) of all codebooks.
        offsets: (Q,), where each codebook's begins.
        heads: (D, Q * (K + 1)).
        no_end: (Q * (K + 1),), minus infinity where a codebook has no end of speech, else zero.
        turns: what `rotate` takes for queries, keys and values of L positions, (L, 3, 1, head_dim)
            both: values are not turned, but are with the others in one tensor.
        rows: (B,), where an item's next position is in `kept`.
        size: L.
        least: sqrt(D * epsilon), one number: the length that is added to a row's own, as norms add
            their epsilon under the root.
        fixed: whether a step attends over all L positions, masked, so that all steps have the same
            shapes; otherwise over those that may be filled, which are fewer.
    """

    kept: tuple[Tensor, ...]
    blocks: list[PackedBlock]
    table: Tensor
    offsets: Tensor
    heads: Tensor
    no_end: Tensor
    turns: tuple[Tensor, Tensor]
    rows: Tensor
    size: int
    least: Tensor
    fixed: bool = False


class Talker(reference.Talker):
    __doc__ = reference.Talker.__doc__

    def steps(
        self,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
        max_frames: int = 512,
    ) -> Steps:
        """How codes are drawn; see `reference.Talker.steps`. Where kernels run, by one of them,
        from other random numbers than torch's."""
        embeddings: list[Any] = [*self.code_embeddings]
        weight = embeddings[0].weight
        logits = weight.new_empty(0, self.n_codebooks, self.codebook_size + 1)
        # As long as all codebooks' embeddings, without their memory.
        table = weight[:1].expand(self.n_codebooks * len(weight), -1)
        kind = KernelSteps if choose("talker_sample", logits, table) == "triton" else Steps
        return kind(self, temperature, top_k, seed, max_frames)

    def prefill(
        self, text: Tensor, text_lengths: Tensor, speakers: Tensor | None, max_steps: int
    ) -> Cache:
        """A cache with packed weights in float32 and float64, without autocast; see
        `reference.Talker.prefill`."""
        cache = super().prefill(text, text_lengths, speakers, max_steps)
        dtype, device = cache.keys.dtype, text.device.type
        if dtype not in PACKED or torch.is_grad_enabled() or torch.is_autocast_enabled(device):
            return cache
        batch, size = cache.keys.shape[1:3]
        both = torch.stack([cache.keys, cache.values], 3)  # (n_layers, B, L, 2, H, head_dim)
        cosines, sines = cache.rotary
        modules: list[Any] = [*self.heads]
        heads = [F.pad(head.weight, (0, 0, 0, int(q > 0))) for q, head in enumerate(modules)]
        embeddings: list[Any] = [*self.code_embeddings]
        no_end = self.norm.weight.new_zeros(self.n_codebooks, self.codebook_size + 1)
        no_end[1:, -1] = -math.inf
        books = torch.arange(self.n_codebooks, device=text.device)
        return PackedCache(
            keys=both[:, :, :, 0],
            values=both[:, :, :, 1],
            rotary=cache.rotary,
            position=cache.position,
            filled=cache.filled,
            kept=both.flatten(1, 2).unbind(),
            blocks=[self._packed(block) for block in self.blocks],
            table=torch.cat([embedding.weight for embedding in embeddings]),
            offsets=books * (self.codebook_size + 2),
            heads=self._gained(torch.cat(heads), self.norm.weight),
            no_end=no_end.flatten(),
            turns=(
                torch.cat([cosines, cosines, torch.ones_like(cosines)], 1),
                torch.cat([sines, sines, torch.zeros_like(sines)], 1),
            ),
            rows=torch.arange(batch, device=text.device) * size + cache.position,
            size=size,
            least=self.norm.weight.new_tensor(math.sqrt(self.dim * EPSILON)),
        )

    def _gained(self, weight: Tensor, gain: Tensor) -> Tensor:
        """A transposed weight (D, out) for rows divided by their length, not by their RMS."""
        return (weight * (gain * math.sqrt(self.dim))).T.contiguous()

    def _packed(self, block: Any) -> PackedBlock:
        return PackedBlock(
            qkv=self._gained(block.qkv.weight, block.attention_norm.weight),
            out=block.out.weight.T.contiguous(),
            gate_up=self._gained(block.gate_up.weight, block.mlp_norm.weight),
            down=block.down.weight.T.contiguous(),
        )

    def step(self, codes: Tensor, cache: Cache) -> Tensor:
        """Logits of a batch's next step: (B, Q) of what is read -> (B, Q, K + 1)."""
        if not isinstance(cache, PackedCache):
            return super().step(codes, cache)
        x = F.embedding(codes + cache.offsets, cache.table).sum(1)  # (B, D)
        with full_precision(x):  # autocast may have begun since the prefix was read
            return self.through(x, cache)

    def through(self, x: Tensor, cache: PackedCache) -> Tensor:
        """A step from embeddings on, without autocast: (B, D), sums over codebooks -> logits
        (B, Q, K + 1)."""
        batch, shape = len(x), (len(x), 3, self.n_heads, -1)
        cache.filled = cache.size if cache.fixed else cache.filled + 1
        mask = None
        if batch > 1 or cache.fixed:  # all positions of one item alone are its own
            mask = unseen(cache.position, cache.filled, x.dtype)
        cosines, sines = (table.index_select(0, cache.position) for table in cache.turns)
        keys, values = (
            both[:, :, : cache.filled].transpose(2, 3).unbind()  # (B, H, filled, head_dim) each
            for both in (cache.keys, cache.values)
        )
        least = cache.least
        for layer, block in enumerate(cache.blocks):
            packed = torch.mm(_unit(x, least), block.qkv).view(shape)
            turned = rotate(packed, (cosines, sines))  # (B, 3, H, head_dim)
            cache.kept[layer].index_copy_(0, cache.rows, turned[:, 1:])
            attended = F.scaled_dot_product_attention(
                turned[:, :1].transpose(1, 2), keys[layer], values[layer], attn_mask=mask
            )  # (B, H, 1, head_dim)
            x = torch.addmm(x, attended.view(batch, -1), block.out)
            gate, up = torch.mm(_unit(x, least), block.gate_up).chunk(2, 1)
            x = torch.addmm(x, F.silu(gate) * up, block.down)
        cache.position += 1
        cache.rows += 1
        logits = torch.addmm(cache.no_end, _unit(x, least), cache.heads)
        return logits.view(batch, self.n_codebooks, -1)


def _unit(x: Tensor, least: Tensor) -> Tensor:
    """Rows (B, D) divided by sqrt(|x|^2 + least^2)."""
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=1, keepdim=True), least)
