"""The Talker: a decoder-only transformer that reads text and says it in codes.

An item is one sequence: a speaker, the text's bytes and an end-of-text id, then steps of codes in
the delay pattern (`delay.py`). No head shares its weights with an embedding.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import accept_wrapped_names, require_finite
from ..values import (
    MOST_CHANNELS,
    MOST_CODEBOOKS,
    MOST_LAYERS,
    require_int,
    require_parameters,
)
from .blocks import EPSILON, Block, Cache, rms_norm, rotary_table
from .checks import require_batch, require_digest, require_names, speaker_ids
from .delay import delayed
from .generation import Generated, Steps, generate
from .text import TEXT_SIZE

INITIAL = 0.02  # standard deviation of weights at first


@dataclasses.dataclass
class TalkerOutput:
    """What `Talker.forward` returns.

    Attributes:
        logits: (B, T, n_codebooks, codebook_size + 1), of step t before its codes are read. The
            last class is the end of speech: minus infinity in all codebooks but the first.
        targets: (B, T, n_codebooks) int64, the classes to predict; `delay.NO_TARGET` where there
            is nothing to.
    """

    logits: Tensor
    targets: Tensor


class Talker(nn.Module):
    """Text in, codes out.

    An item is one sequence: a speaker, the text's bytes and an end-of-text id, then steps of codes
    in the delay pattern (`delay.py`). It is padded on the right, so that the causal mask suffices.

    Args:
        n_codebooks: Q, of the quantizer.
        codebook_size: K, of the quantizer.
        dim: width, a multiple of 2 * n_heads.
        n_layers: blocks.
        n_heads: of attention.
        hidden_dim: of SwiGLU; 3 * dim if None.
        speakers: names of the voices it knows.
        max_text: bytes of text that it reads at once.
        quantizer: `quantizer_digest` of the quantizer whose codes it speaks; "" where that is not
            known, and so not checked.

    Raises:
        TypeError: an argument has another type.
        ValueError: one is out of range, or `dim` is no multiple of 2 * `n_heads`.
    """

    def __init__(
        self,
        n_codebooks: int = 2,
        codebook_size: int = 128,
        dim: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
        hidden_dim: int | None = None,
        speakers: Sequence[str] = (),
        max_text: int = 512,
        quantizer: str = "",
    ) -> None:
        super().__init__()
        self.n_codebooks = require_int("n_codebooks", n_codebooks, 1, MOST_CODEBOOKS)
        self.codebook_size = require_int("codebook_size", codebook_size, 1, MOST_CHANNELS)
        dim = require_int("dim", dim, 2, MOST_CHANNELS)
        n_layers = require_int("n_layers", n_layers, 1, MOST_LAYERS)
        n_heads = require_int("n_heads", n_heads, 1, dim)
        if dim % (2 * n_heads):
            raise ValueError(f"dim: expected a multiple of 2 * n_heads = {2 * n_heads}, got {dim}")
        if hidden_dim is None:
            hidden_dim = 3 * dim
        hidden_dim = require_int("hidden_dim", hidden_dim, 1, MOST_CHANNELS)
        self.speakers = require_names("speakers", speakers)
        self.max_text = require_int("max_text", max_text, 1, MOST_CHANNELS)
        self.quantizer = require_digest("quantizer", quantizer)
        self.dim, self.n_heads = dim, n_heads
        self.config: dict[str, Any] = {
            "n_codebooks": self.n_codebooks,
            "codebook_size": self.codebook_size,
            "dim": dim,
            "n_layers": n_layers,
            "n_heads": n_heads,
            "hidden_dim": hidden_dim,
            "speakers": list(self.speakers),
            "max_text": self.max_text,
            "quantizer": self.quantizer,
        }
        self.begin, self.pad, self.end = codebook_size, codebook_size + 1, codebook_size
        outside = TEXT_SIZE + len(self.speakers) + 1 + self.n_codebooks * (2 * codebook_size + 2)
        count = n_layers * dim * (4 * dim + 3 * hidden_dim) + dim * outside
        require_parameters("Talker", count)
        self.text_embedding = nn.Embedding(TEXT_SIZE, dim)
        self.speaker_embedding = nn.Embedding(1 + len(self.speakers), dim)  # 0 is "none"
        self.code_embeddings = nn.ModuleList(
            nn.Embedding(codebook_size + 2, dim) for _ in range(self.n_codebooks)
        )
        self.blocks = nn.ModuleList(Block(dim, n_heads, hidden_dim) for _ in range(n_layers))
        self.norm = nn.RMSNorm(dim, eps=EPSILON)
        self.heads = nn.ModuleList(
            nn.Linear(dim, codebook_size + (q == 0), bias=False) for q in range(self.n_codebooks)
        )
        self._initialise()
        self.register_load_state_dict_pre_hook(accept_wrapped_names)
        self.register_load_state_dict_pre_hook(require_finite)

    def _initialise(self) -> None:
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                # What a block adds shrinks with their number, so that the sum does not grow.
                last = name.endswith(("out.weight", "down.weight"))
                scale = (2 * len(self.blocks)) ** -0.5 if last else 1.0
                nn.init.normal_(weight, std=INITIAL * scale)

    def forward(
        self,
        text: Tensor,
        text_lengths: Tensor,
        codes: Tensor,
        lengths: Tensor,
        speakers: Tensor | None = None,
    ) -> TalkerOutput:
        """Logits of every code from the text and the codes before it, all at once.

        Args:
            text: (B, N) integers, ids as `text.text_ids` gives them.
            text_lengths: (B,) integers, ids of each text, its end among them.
            codes: (B, S, n_codebooks) integers; past an item's length they may be anything.
            lengths: (B,) integers, frames of each item.
            speakers: (B,) integers: 0 is none, i + 1 is `speakers[i]`; None is none for all.

        Raises:
            TypeError: a tensor is not of integers.
            ValueError: a shape or device does not fit, or a length is beyond the tensor.
            IndexError: an id or a code is out of range.
        """
        text, text_lengths, codes, lengths, *rest = require_batch(
            self, text, text_lengths, codes, lengths, speakers
        )
        speakers = rest[0] if rest else None
        inputs, targets = delayed(codes, lengths, self.codebook_size)
        prefix = self.embed_prefix(text, speakers)  # (B, 1 + N, D)
        audio = self.embed_codes(inputs)  # (B, T, D)
        n_prefix, n_audio = prefix.shape[1], audio.shape[1]
        starts = (1 + text_lengths)[:, None]  # (B, 1), where an item's codes begin
        # Both parts side by side, without the padding between them.
        place = torch.arange(n_prefix + n_audio, device=text.device)
        source = torch.where(place < starts, place, n_prefix + place - starts)
        source = source.clamp(max=n_prefix + n_audio - 1)[..., None].expand(-1, -1, self.dim)
        x = torch.cat([prefix, audio], 1).gather(1, source)
        rotary = rotary_table(x.shape[1], self.dim // self.n_heads, x)
        for block in self.blocks:
            x, _, _ = block(x, rotary)
        steps = starts + torch.arange(n_audio, device=text.device)
        x = x.gather(1, steps[..., None].expand(-1, -1, self.dim))  # (B, T, D)
        return TalkerOutput(self.logits(x), targets)

    def embed_prefix(self, text: Tensor, speakers: Tensor | None) -> Tensor:
        """(B, N) and (B,) -> (B, 1 + N, D): the speaker, then the text."""
        if speakers is None:
            speakers = text.new_zeros(len(text))
        return torch.cat([self.speaker_embedding(speakers)[:, None], self.text_embedding(text)], 1)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """Sums over codebooks: (..., Q) of codes, BOS and PAD -> (..., D)."""
        pairs = zip(self.code_embeddings, codes.unbind(-1), strict=True)
        first, *others = [embedding(column) for embedding, column in pairs]
        return sum(others, start=first)

    def logits(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., Q, K + 1); only the first codebook has the end of speech."""
        x = rms_norm(x, self.norm)
        first, *others = [head(x) for head in self.heads]
        no_end = first.new_full((*x.shape[:-1], 1), -torch.inf)
        columns = [first, *(part for logits in others for part in (logits, no_end))]
        return torch.cat(columns, -1).unflatten(-1, (self.n_codebooks, -1))

    # Generation

    def prefill(
        self, text: Tensor, text_lengths: Tensor, speakers: Tensor | None, max_steps: int
    ) -> Cache:
        """A cache that holds the prefixes of a batch, with room for `max_steps` of codes.

        Takes what `forward` does.
        """
        x = self.embed_prefix(text, speakers)
        batch, n_prefix, _ = x.shape
        head_dim = self.dim // self.n_heads
        rotary = rotary_table(n_prefix + max_steps, head_dim, x)
        own = rotary[0][:n_prefix], rotary[1][:n_prefix]
        shape = len(self.blocks), batch, n_prefix + max_steps, self.n_heads, head_dim
        keys, values = x.new_zeros(shape), x.new_zeros(shape)
        for layer, block in enumerate(self.blocks):
            x, keys[layer, :, :n_prefix], values[layer, :, :n_prefix] = block(x, own)
        position = 1 + text_lengths
        return Cache(keys, values, rotary, position, int(position.max()))

    def step(self, codes: Tensor, cache: Cache) -> Tensor:
        """Logits of a batch's next step: (B, Q) of what is read -> (B, Q, K + 1)."""
        x = self.embed_codes(codes)  # (B, D)
        at = cache.next_place()
        blocks: Iterable[Any] = self.blocks
        for layer, block in enumerate(blocks):
            x = block.step(x, at, layer)
        return self.logits(x)

    def speaker_ids(self, speakers: Sequence[str | None] | str | None, n: int) -> Tensor:
        """Ids of n items' speakers, (n,) int64 on the CPU; one name stands for all.

        Raises:
            TypeError: a speaker is neither a name nor None.
            ValueError: one is not known, or there is not one for each item.
        """
        return speaker_ids(self.speakers, speakers, n)

    def steps(
        self,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
        max_frames: int = 512,
    ) -> Steps:
        """How codes are drawn, and how many at most; arguments as in `generate`."""
        return Steps(self, temperature, top_k, seed, max_frames)

    @torch.no_grad()
    def generate(
        self,
        texts: Sequence[str] | str,
        speakers: Sequence[str | None] | str | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
        max_frames: int = 512,
    ) -> Generated:
        """Codes that say texts, of all of them in one batch.

        A text longer than `max_text` bytes is split between sentences, and its codes are joined.

        Args:
            texts: B of them, or one.
            speakers: a name of `speakers`, or None, for each text or for all.
            temperature: that logits are divided by; 0 takes the likeliest code.
            top_k: codes that can be drawn, the likeliest of each codebook; None is all.
            seed: of what is drawn. At temperature 0 nothing is. All texts are drawn side by side,
                so that what is drawn for one depends on those beside it.
            max_frames: frames that a text, or a piece of one, has at most. One that has not ended
                by then is cut there, with a warning in the log.

        Returns:
            `codes` (B, S, n_codebooks) int64, -1 past an item's end, and `lengths` (B,) int64.

        Raises:
            TypeError: an argument has another type.
            ValueError: a text is empty, cannot be written in UTF-8 or has a sentence longer than
                `max_text` bytes; a speaker is not known; a number is out of range.
        """
        return generate(self, texts, speakers, temperature, top_k, seed, max_frames)
