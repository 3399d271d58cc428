"""What a run remembers of its clips."""

import os
from pathlib import Path

import numpy as np
import pytest

soundfile = pytest.importorskip("soundfile")

from muomni_fast.reference.errors import CheckpointError  # noqa: E402
from muomni_fast.reference.training.clip_table import (  # noqa: E402
    Row,
    describe_clips,
    differences,
    fingerprint,
    read_clips,
    write_clips,
)
from muomni_fast.reference.training.clips import Clip, find_clips  # noqa: E402
from muomni_fast.reference.training.run import require_same_clips  # noqa: E402
from muomni_fast.reference.training.run_folder import RunFolder  # noqa: E402


def noise(path: Path, frames: int, seed: int = 0, rate: int = 16000) -> Path:
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(frames), rate)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(4):
        noise(folder / f"{i}.wav", 800 + i)
    (folder / "garbage.wav").write_bytes(b"garbage")
    return folder


def rows(source: Path) -> list[Row]:
    return describe_clips(find_clips(source), source)


def test_clips_are_known_by_more_than_their_names(source):
    assert rows(source)[1] == Row("1.wav", "", "1646", "801", "16000")
    assert rows(source)[-1] == Row("garbage.wav", "", "7", "", "")
    missing = describe_clips([Clip(source / "nowhere.wav", "ann")], source)
    assert missing == [Row("nowhere.wav", "ann", "", "", "")]


def test_a_table_is_read_as_it_was_written(source, tmp_path):
    odd = os.fsdecode(os.fsencode(source) + b'/caf\xe9, "a"\nb.wav')
    noise(source / "plain.wav", 800).rename(odd)
    before = rows(source)
    write_clips(tmp_path / "clips.csv", before)
    assert read_clips(tmp_path / "clips.csv") == before
    assert not list(differences(before, rows(source)))


@pytest.mark.parametrize("content", [b"", b"file\n", b"file,speaker,size,frames,rate\na,b\n", b'"'])
def test_a_damaged_table_is_named(content, tmp_path):
    path = tmp_path / "clips.csv"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="clips.csv: damaged"):
        read_clips(path)
    with pytest.raises(CheckpointError, match="nowhere.csv: No such file"):
        read_clips(tmp_path / "nowhere.csv")


def test_every_change_is_a_line_that_names_the_clip(source):
    before = rows(source)
    noise(source / "0.wav", 900)
    (source / "1.wav").unlink()
    noise(source / "2.wav", 802, rate=8000)  # as many bytes, as many frames
    noise(source / "4.wav", 800)
    noise(source / "garbage.wav", 1)
    assert list(differences(before, rows(source))) == [
        "0.wav: size 1644 -> 1844, frames 800 -> 900",
        "1.wav is missing",
        "2.wav: rate 16000 -> 8000",
        "garbage.wav: size 7 -> 46, frames none -> 1, rate none -> 16000",
        "4.wav is new",
    ]


def test_another_recording_of_equal_size_is_known_by_its_frames(source):
    soundfile.write(source / "a.wav", np.ones(400) / 2, 16000, subtype="PCM_16")
    before = rows(source)
    soundfile.write(source / "a.wav", np.ones(800) / 2, 16000, subtype="PCM_U8")
    assert list(differences(before, rows(source))) == ["a.wav: frames 400 -> 800"]


def test_a_clip_listed_twice_is_two(source):
    one = describe_clips([Clip(source / "0.wav", "")], source)
    assert list(differences(one * 2, one)) == ["0.wav is missing"]
    assert list(differences(one, one * 2)) == ["0.wav is new"]


def test_runs_of_earlier_versions_know_names_and_speakers(source, tmp_path):
    folder = RunFolder(tmp_path / "run")  # without a table of clips
    description = {"data": str(source), "fingerprint": fingerprint(find_clips(source), source)}
    require_same_clips(folder, description, find_clips(source))
    (source / "0.wav").rename(source / "9.wav")
    with pytest.raises(CheckpointError, match="begun with: names or speakers differ"):
        require_same_clips(folder, description, find_clips(source))
    del description["fingerprint"]
    with pytest.raises(CheckpointError, match="run/checkpoints/clips.csv: No such file"):
        require_same_clips(folder, description, find_clips(source))
