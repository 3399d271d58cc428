"""Text as the Talker reads it: UTF-8 bytes and an end-of-text id."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..values import require_text, shown

END_OF_TEXT = 256  # after the 256 bytes
TEXT_SIZE = 257  # ids there are
# A sentence's end: its mark, and what closes after it, such as a quotation mark.
SENTENCE = re.compile(r"""(?<=[.!?。！？])["'”’)\]]*\s+|(?<=[。！？])|\n+""")


def text_bytes(name: str, text: Any) -> bytes:
    """A text's UTF-8, without space at its ends.

    Args:
        name: of the argument, for errors.
        text: of at least one character that is no space.

    Raises:
        TypeError: it is no string.
        ValueError: it is empty, or holds half of a surrogate pair, which UTF-8 cannot write.
    """
    text = require_text(name, text).strip()
    if not text:
        raise ValueError(f"{name}: expected text, got nothing to say")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        wrong = text[error.start]
        raise ValueError(
            f"{name}: expected text that UTF-8 can write, got half of a surrogate pair, "
            f"U+{ord(wrong):04X}, at character {error.start}"
        ) from error


def pieces(name: str, text: Any, most: int) -> list[bytes]:
    """A text in pieces of at most `most` bytes; a longer one is split between sentences.

    Args:
        name: of the argument, for errors.
        text: as in `text_bytes`.
        most: bytes that the Talker reads at once.

    Returns:
        UTF-8 of pieces; as many sentences in each as fit.

    Raises:
        TypeError, ValueError: as `text_bytes`; or one sentence alone is longer than `most`.
    """
    whole = text_bytes(name, text)
    if len(whole) <= most:
        return [whole]
    found: list[bytes] = []
    for sentence in _sentences(whole.decode()):
        content = sentence.encode()
        if len(content) > most:
            raise ValueError(
                f"{name}: expected sentences of at most {most:,} bytes, got one of "
                f"{len(content):,}: {shown(sentence)}"
            )
        if found and len(found[-1]) + 1 + len(content) <= most:
            found[-1] += b" " + content
        else:
            found.append(content)
    return found


def _sentences(text: str) -> list[str]:
    ends = [0, *(match.end() for match in SENTENCE.finditer(text)), len(text)]
    parts = [text[a:b].strip() for a, b in zip(ends, ends[1:], strict=False)]
    return [part for part in parts if part]


def text_ids(texts: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    """Ids of texts, each with its end-of-text id, padded right with that id.

    Args:
        texts: B of them, in UTF-8.

    Returns:
        (B, N) int64, and how many ids of each count: (B,) int64.
    """
    lengths = [len(text) + 1 for text in texts]
    ids = torch.full((len(texts), max(lengths, default=0)), END_OF_TEXT, device="cpu")
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(list(text), device="cpu")
    return ids, torch.tensor(lengths, device="cpu", dtype=torch.int64)
