"""Tiny Talkers, what they read, and one that has learned its sentences by heart."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from muomni_fast.reference import Talker
from muomni_fast.reference.talker.text import text_ids

SENTENCES = ["A dog barks.", "The rain fell all day.", "Two."]
VOICES = ["ada", "ben", None]


def tiny(n_codebooks: int = 3, speakers: Sequence[str] = ("ada", "ben"), **config: int) -> Talker:
    """A Talker with weights large enough that everything shows in its logits."""
    torch.manual_seed(1)
    settings = {"codebook_size": 16, "dim": 32, "n_layers": 2, "n_heads": 2} | config
    talker = Talker(n_codebooks=n_codebooks, speakers=speakers, **settings).eval()
    for parameter in talker.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return talker


def batch(talker: Talker, lengths: Sequence[int] = (5, 9, 1)) -> tuple[Tensor, ...]:
    """What `forward` takes, of ragged items."""
    text, text_lengths = text_ids([s.encode() for s in SENTENCES[: len(lengths)]])
    generator = torch.Generator().manual_seed(2)
    shape = len(lengths), max(lengths), talker.n_codebooks
    codes = torch.randint(talker.codebook_size, shape, generator=generator)
    speakers = talker.speaker_ids(VOICES[: len(lengths)], len(lengths))
    return text, text_lengths, codes, torch.tensor(lengths), speakers


@functools.cache
def learned(n_codebooks: int = 3) -> tuple[Talker, tuple[Tensor, ...]]:
    """A Talker that was trained until it knows the codes of `batch` by heart."""
    talker = tiny(n_codebooks)
    talker._initialise()
    inputs = batch(talker)
    optimiser = torch.optim.AdamW(talker.parameters(), 5e-3, weight_decay=0)
    for _ in range(150):
        out = talker(*inputs)
        loss = F.cross_entropy(out.logits.flatten(0, 2), out.targets.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.01
    return talker, inputs
