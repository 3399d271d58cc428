"""Texts of clips, wherever corpora keep them."""

from pathlib import Path

import pytest
from support.environment import SPEECH

from muomni_fast import DataError
from muomni_fast.reference.training.clips import Clip, find_clips
from muomni_fast.reference.training.talker_data import usable_text
from muomni_fast.reference.training.transcripts import transcript


def texts_of(source: Path) -> dict[str, str | None]:
    return {clip.path.name: transcript(clip) for clip in find_clips(source)}


def write(path: Path, text: str | bytes = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_shipped_speech_and_recordings(request):
    texts = texts_of(SPEECH)
    assert len(texts) == 60
    assert texts["ada-01.flac"] == "The first train left the harbour before the fog had lifted."
    recordings = request.getfixturevalue("recordings")
    assert sum(text is not None for text in texts_of(recordings.parent / "manifest.csv").values())


def test_ljspeech(tmp_path):
    """Numbers written out, where there is such a column."""
    write(tmp_path / "metadata.csv", "a|In 1923.|In nineteen twenty-three.\nb|Yes.|\nc|\n")
    assert list(texts_of(tmp_path).values()) == ["In nineteen twenty-three.", "Yes.", None]


def test_a_manifest(tmp_path):
    table = write(tmp_path / "clips.csv", 'file,text,speaker\na.wav," Yes, so. ",x\nb.wav,,x\n')
    assert texts_of(table) == {"a.wav": "Yes, so.", "b.wav": None}
    table = write(tmp_path / "bare.csv", "file\na.wav\n")
    assert texts_of(table) == {"a.wav": None}


LIBRITTS = "dev/84/121/84_121_000007_000000"


@pytest.mark.parametrize(
    ("clip", "file", "content", "text"),
    [
        ("wav48/p225/p225_001.wav", "txt/p225/p225_001.txt", "Please.\n", "Please."),
        ("wav48/p225/p225_001_mic2.flac", "txt/p225/p225_001.txt", "Please.\n", "Please."),
        (f"{LIBRITTS}.wav", f"{LIBRITTS}.normalized.txt", "A", "A"),
        (f"{LIBRITTS}.wav", f"{LIBRITTS}.original.txt", "A", "A"),
        ("t/16/2/16-2-1.flac", "t/16/2/16-2.trans.txt", "16-2-0 NO\n16-2-1 AY OH\n", "AY OH"),
        ("t/16/2/16-2-3.flac", "t/16/2/16-2.trans.txt", "16-2-0 NO\n16-2-1 AY OH\n", None),
        ("music/track.ogg", "music/other.txt", "no", None),
    ],
)
def test_trees(tmp_path, clip, file, content, text):
    write(tmp_path / clip)
    write(tmp_path / file, content)
    assert texts_of(tmp_path) == {Path(clip).name: text}


def test_text_that_is_none_is_named(tmp_path):
    clip = write(tmp_path / "84_121_000007_000000.wav")
    text = write(tmp_path / "84_121_000007_000000.normalized.txt", b"caf\xe9")
    with pytest.raises(DataError, match=f"{text}: not a text in UTF-8"):
        transcript(Clip(clip, "84"))


def test_texts_that_are_too_long_are_none():
    assert usable_text(Clip(Path("a.wav"), "", "é" * 4), 8) == "é" * 4
    assert usable_text(Clip(Path("a.wav"), "", "é" * 4), 7) is None
