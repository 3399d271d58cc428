"""Generation: a batch of texts, one step of all codebooks at a time."""

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..checks import refuse_in_capture
from ..values import require_int, require_number, shown
from .delay import n_steps, undelayed
from .text import pieces, text_ids

if TYPE_CHECKING:
    from .blocks import Cache
    from .model import Talker

log = logging.getLogger(__name__)

MOST_FRAMES = 1 << 16
LOOK_EVERY = 8  # steps between looks at what has ended: on a GPU each look waits for it
NO_FRAME = -1  # in the place of codes past an item's end


class Generated(NamedTuple):
    """What was said: codes (B, S, Q) int64, NO_FRAME past an item's end, and lengths (B,)."""

    codes: Tensor
    lengths: Tensor


def generate(
    talker: "Talker",
    texts: Any,
    speakers: Any,
    temperature: float,
    top_k: int | None,
    seed: int,
    max_frames: int,
) -> Generated:
    """Codes that say texts; see `Talker.generate`."""
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, Sequence) or isinstance(texts, bytes):
        raise TypeError(f"texts: expected a string, or a list of strings, got {shown(texts)}")
    ids = talker.speaker_ids(speakers, len(texts)).tolist()
    parts = [pieces(f"texts[{i}]", text, talker.max_text) for i, text in enumerate(texts)]
    steps = talker.steps(temperature, top_k, seed, max_frames)
    if not texts:
        device = talker.norm.weight.device
        codes = torch.empty(0, 0, talker.n_codebooks, dtype=torch.int64, device=device)
        return Generated(codes, codes.new_empty(0))
    flat = [piece for text in parts for piece in text]
    owners = [speaker for speaker, text in zip(ids, parts, strict=True) for _ in text]
    codes, lengths = steps.all(flat, owners)
    if len(flat) == len(texts):
        return Generated(codes, lengths)
    said = iter([item[:n] for item, n in zip(codes, lengths.tolist(), strict=True)])
    joined = [torch.cat([next(said) for _ in text]) for text in parts]
    codes = torch.nn.utils.rnn.pad_sequence(joined, batch_first=True, padding_value=NO_FRAME)
    return Generated(codes, lengths.new_tensor([len(item) for item in joined]))


class Steps:
    """How codes are drawn, and how many at most; arguments as in `Talker.generate`."""

    def __init__(
        self,
        talker: "Talker",
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
        max_frames: int = 512,
    ) -> None:
        device = talker.norm.weight.device
        refuse_in_capture(device, "generate: texts come from the host, and it looks for their ends")
        self.talker = talker
        self.temperature = require_number("temperature", temperature)
        if self.temperature < 0:
            raise ValueError(f"temperature: expected at least 0, got {temperature}")
        self.top_k = None if top_k is None else require_int("top_k", top_k, 1)
        self.max_frames = require_int("max_frames", max_frames, 1, MOST_FRAMES)
        self.most = n_steps(self.max_frames, talker.n_codebooks)
        self.seed = require_int("seed", seed, 0, (1 << 63) - 1)
        self.random = torch.Generator(device)
        self.random.manual_seed(self.seed)

    @torch.no_grad()
    def all(self, texts: Sequence[bytes], speakers: Sequence[int]) -> Generated:
        """Say texts to their ends; speakers by id."""
        grid, end = [], None
        for row, end in self.rows(texts, speakers):
            grid.append(row)
            if len(grid) % LOOK_EVERY == 0 and self._done(end, len(grid)):
                break
        assert end is not None
        lengths = end.clamp(max=self.max_frames)
        longest = int(lengths.max())
        codes = undelayed(torch.stack(grid, 1), longest)
        past = torch.arange(longest, device=codes.device) >= lengths[:, None]
        self._warn([texts[i] for i, at in enumerate(end.tolist()) if at > self.max_frames])
        return Generated(codes.masked_fill(past[..., None], NO_FRAME), lengths)

    @torch.no_grad()
    def rows(
        self, texts: Sequence[bytes], speakers: Sequence[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Codes step by step, in the delay pattern.

        Yields:
            the step's codes (B, Q), PAD where there are none, and the step at which the first
            codebook ended, (B,), `max_frames` + 1 where it has not.
        """
        cache, row, end = self.begin(texts, speakers)
        for step in range(self.most):
            codes = self.draw(self.talker.step(row, cache))
            row, end = self.settled(codes, end, step)
            yield row, end

    def begin(
        self, texts: Sequence[bytes], speakers: Sequence[int]
    ) -> tuple["Cache", Tensor, Tensor]:
        """What steps begin with: a cache of the texts, and the row and the ends before step 0."""
        talker = self.talker
        device = talker.norm.weight.device
        text, text_lengths = (tensor.to(device) for tensor in text_ids(texts))
        voices = torch.tensor(speakers, device=device, dtype=torch.int64)
        cache = talker.prefill(text, text_lengths, voices, self.most)
        row = torch.full((len(texts), talker.n_codebooks), talker.begin, device=device)
        end = torch.full((len(texts),), self.max_frames + 1, device=device)
        return cache, row, end

    def settled(self, codes: Tensor, end: Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
        """The row (B, Q) that a step's classes make, and the ends (B,) with those of this step."""
        end = torch.where(codes[:, 0] == self.talker.end, end.clamp(max=step), end)
        frame = step - torch.arange(codes.shape[1], device=codes.device)  # (Q,) whose codes
        out = (frame < 0) | (frame >= end.clamp(max=self.max_frames)[:, None])
        return codes.masked_fill(out, self.talker.pad), end

    @torch.no_grad()
    def frames(self, text: bytes, speaker: int) -> Iterator[Tensor]:
        """One text frame by frame: yields (1, 1, Q), each as soon as it is complete."""
        rows: list[Tensor] = []
        delay = self.talker.n_codebooks - 1
        for step, (row, end) in enumerate(self.rows([text], [speaker])):
            rows = [*rows[-delay:], row] if delay else [row]
            frame, ended = step - delay, int(end)
            last = min(ended, self.max_frames)
            if 0 <= frame < last:
                yield undelayed(torch.stack(rows, 1), 1)
            if frame + 1 >= last:
                break
        self._warn([text] if ended > self.max_frames else [])

    def _warn(self, cut: Sequence[bytes]) -> None:
        if cut:
            log.warning(
                "no end of speech within %d frames, and cut there: %s",
                self.max_frames,
                ", ".join(repr(text[:40].decode(errors="ignore")) for text in cut),
            )

    def draw(self, logits: Tensor) -> Tensor:
        """A class for each codebook: (B, Q, K + 1) -> (B, Q)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        scores = (self.likeliest(logits).float() / self.temperature).softmax(-1)
        # The least of exponential times with these rates is a draw from the distribution.
        times = torch.empty_like(scores).exponential_(generator=self.random)
        return (scores / times).argmax(-1)

    def likeliest(self, logits: Tensor) -> Tensor:
        """Logits with minus infinity in all but the `top_k` classes of each codebook."""
        if self.top_k is None or self.top_k >= logits.shape[-1]:
            return logits
        least = logits.topk(self.top_k, -1).values[..., -1:]
        return logits.masked_fill(logits < least, -torch.inf)

    def _done(self, end: Tensor, steps: int) -> bool:
        last = int(end.max())
        return last <= self.max_frames and steps >= n_steps(last, self.talker.n_codebooks)
