"""Word errors: what a recogniser understands against what was said."""

import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from .refused import RATE, Refused, require_sound


def normalised(text: str) -> list[str]:
    """Words in lower case, without accents and punctuation: "Block-books, don't" -> block, books,
    don't."""
    plain = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
    plain = "".join(c for c in plain if not unicodedata.combining(c)).lower()
    words = (word.strip("'") for word in re.findall(r"[^\W_]+(?:'[^\W_]+)*", plain))
    return [word for word in words if word]


def edit_distance(said: Sequence[str], heard: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that make `heard` of `said` (Levenshtein)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(said, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, start=1):
            least = min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
            diagonal, row[j] = row[j], least
    return row[-1]


def word_errors() -> Callable[[np.ndarray, str], tuple[int, int]]:
    """Errors of pocketsphinx and the number of words said, for the words of a clip.

    The share of all words of all clips is the word error rate: 0 is best, and insertions may take
    it above 1. The recogniser is a small one of general English. Compare with the original's row:
    its own errors are in all of them. Blind to voice, melody and naturalness; it does not
    understand synthesis by rule (espeak), and counts numbers in digits as errors, for it hears
    words.
    """
    import pocketsphinx

    def measure(made: np.ndarray, text: str) -> tuple[int, int]:
        said = normalised(text)
        if not said:
            raise Refused("its text has no words")
        require_sound(made, 0.1)
        # A new one for each clip: it adapts to what it has heard, and results depended on order.
        decoder = pocketsphinx.Decoder(samprate=RATE, loglevel="FATAL", cmn="batch")
        decoder.start_utt()
        decoder.process_raw((made * 32767).astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return edit_distance(said, normalised(found.hypstr if found else "")), len(said)

    return measure
