"""The script that makes speech to train on, without its synthesiser."""

import importlib.util

import numpy as np
import pytest
from support.environment import SPEECH

pytest.importorskip("soundfile")
pytest.importorskip("soxr")

from muomni_fast.reference.training.clips import find_clips  # noqa: E402
from muomni_fast.reference.training.transcripts import transcript  # noqa: E402

spec = importlib.util.spec_from_file_location("make_speech", SPEECH / "make_speech.py")
assert spec is not None and spec.loader is not None
make_speech = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_speech)


def test_sentences_differ_and_are_the_same_every_time():
    sentences = make_speech.made_up(3000)
    assert len(set(sentences)) == 3000
    assert make_speech.made_up(10) == sentences[:10]
    assert all(s[0].isupper() and s.endswith(".") and 20 < len(s) < 120 for s in sentences)
    for count in (0, 10**9):
        with pytest.raises(ValueError, match="sentences: expected 1 to"):
            make_speech.made_up(count)


def test_a_folder_that_training_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(make_speech, "speak", lambda *args: np.full(1600, 0.1))
    make_speech.main(["--sentences", "301", "--out", str(tmp_path / "more")])
    clips = find_clips(tmp_path / "more")
    assert len(clips) == 301 and {clip.speaker for clip in clips} == {"ada", "ben", "cal"}
    assert sorted(transcript(c) for c in clips) == sorted(make_speech.made_up(301))
    assert clips[0].path.name == "ada-001.flac"


def test_the_shipped_folder_is_not_mixed_with_others(capsys):
    for options in (["--sentences", "3"], ["--out", "more"]):
        with pytest.raises(SystemExit):
            make_speech.main(options)
    assert "--sentences and --out go together" in capsys.readouterr().err
