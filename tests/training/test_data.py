"""Finding clips, splitting them, and batches that depend on nothing but seed and step."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from support.environment import SPEECH

from muomni_fast import DataError, MelConfig, log_mel
from muomni_fast.reference.training.clips import Clip, find_clips, split_clips
from muomni_fast.reference.training.data import SpeechDataset, read_held_out

soundfile = pytest.importorskip("soundfile")
RATE, MEL = 16000, MelConfig()


def noise(path: Path, seconds: float = 1.0, rate: int = RATE, level: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(abs(hash(path.name)) % 2**32)
    soundfile.write(path, level * random.standard_normal(int(seconds * rate)).clip(-3, 3), rate)
    return path


def clips_in(folder: Path, n: int, **options: float) -> list[Clip]:
    return [Clip(noise(folder / f"{i:03d}.wav", **options), f"s{i % 7}") for i in range(n)]


# Finding


def test_shipped_speech():
    clips = find_clips(SPEECH)
    assert len(clips) == 60
    assert {c.speaker for c in clips} == {"ada", "ben", "cal"}
    assert all(sum(c.speaker == s for c in clips) == 20 for s in ("ada", "ben", "cal"))
    infos = [soundfile.info(c.path) for c in clips]
    assert all(i.samplerate == RATE and i.channels == 1 and i.format == "FLAC" for i in infos)
    assert 210 < sum(i.duration for i in infos) < 270
    assert sum(c.path.stat().st_size for c in clips) <= 6_000_000


def test_recordings_manifest(recordings):
    clips = find_clips(recordings.parent / "manifest.csv")
    assert len(clips) == 158 and len({c.speaker for c in clips}) == 70
    assert all(c.path.is_file() for c in clips)


@pytest.mark.parametrize(
    ("name", "speaker"),
    [
        ("wav48_silence_trimmed/p225/p225_001_mic1.flac", "p225"),
        ("train-clean-100/84/121123/84_121123_000007_000000.wav", "84"),
        ("test-other/1688/142285/1688-142285-0000.flac", "1688"),
        ("music/track.ogg", ""),
    ],
)
def test_corpora_give_their_speakers(tmp_path, name, speaker):
    path = noise(tmp_path / name)
    (tmp_path / "README.txt").write_text("not audio")
    assert find_clips(tmp_path) == [Clip(path, speaker)]


def test_ljspeech_and_manifest(tmp_path):
    lj = tmp_path / "LJSpeech-1.1"
    noise(lj / "wavs" / "LJ001-0001.wav")
    (lj / "metadata.csv").write_text('LJ001-0001|He said "no|He said no\n', encoding="utf-8")
    assert find_clips(lj) == [Clip(lj / "wavs" / "LJ001-0001.wav", "LJSpeech-1.1")]
    table = tmp_path / "list.csv"
    table.write_text("speaker,file,other\nann,LJSpeech-1.1/wavs/LJ001-0001.wav,3\n")
    assert find_clips(table) == [Clip(lj / "wavs" / "LJ001-0001.wav", "ann")]
    table.write_text("file\nx.wav\n")
    assert find_clips(table) == [Clip(tmp_path / "x.wav", "")]
    table.write_text('text,file\n"Well, no",x.wav\n,y.wav\n')
    assert find_clips(table) == [
        Clip(tmp_path / "x.wav", ""),
        Clip(tmp_path / "y.wav", ""),
    ]
    assert [clip.text for clip in find_clips(table)] == ["Well, no", ""]
    assert [clip.text for clip in find_clips(lj)] == ["He said no"]


def test_sources_that_do_not_work_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        find_clips(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no audio found"):
        find_clips(tmp_path / "empty")
    table = tmp_path / "list.csv"
    for content, message in [
        ("", 'column "file"'),
        ("path\nx.wav\n", r'column "file".*\[\'path\'\]'),
        ("file,speaker\nx.wav\n", "line 2"),
        ("file\nx.wav\n\n,\n", "line 4"),
        ("file\n", "no audio found"),
    ]:
        table.write_text(content)
        with pytest.raises(DataError, match=f"list.csv: .*{message}"):
            find_clips(table)
    table.write_bytes(b"file\n\xff\xfe\x00\n")
    with pytest.raises(DataError, match="not a text table"):
        find_clips(table)
    with pytest.raises(DataError, match="no such file or folder"):
        find_clips("a" * 300)


def test_names_too_long_to_be_files(tmp_path):
    """They are listed, and skipped like other bad clips when their turn comes."""
    name = "a" * 300
    (tmp_path / "list.csv").write_text(f"file\n{name}.wav\n")
    (tmp_path / "metadata.csv").write_text(f"{name}|He said no\n")
    (tmp_path / "wavs").mkdir()
    for clips in (find_clips(tmp_path / "list.csv"), find_clips(tmp_path)):
        data = SpeechDataset([*clips, *clips_in(tmp_path, 2)], MEL, 2560, 3, by_length=True)
        assert [i for step in range(5) for i in data[step]["skipped"]] == [0]


# Splitting


def test_speaker_disjoint_split(recordings):
    clips = find_clips(recordings.parent / "manifest.csv")
    training, held_out, by = split_clips(clips)
    assert by == "speaker" and len(training) + len(held_out) == len(clips)
    assert not {c.speaker for c in training} & {c.speaker for c in held_out}
    assert len({c.speaker for c in held_out}) == 7
    assert split_clips(clips[::-1])[1] == held_out[::-1]  # decided by names, not by order


def test_few_speakers_hold_out_clips_of_each():
    training, held_out, by = split_clips(find_clips(SPEECH))
    assert by == "clip" and len(held_out) == 6
    assert sorted(c.speaker for c in held_out) == ["ada", "ada", "ben", "ben", "cal", "cal"]
    assert not set(training) & set(held_out)


def test_splits_that_cannot_be_made(tmp_path):
    with pytest.raises(DataError, match="at least 2 clips, got 1"):
        split_clips([Clip(tmp_path / "a", "")])
    with pytest.raises(DataError, match="at least 2 known speakers"):
        split_clips([Clip(tmp_path / "a", "x"), Clip(tmp_path / "b", "x")], by="speaker")
    with pytest.raises(ValueError, match="'thirds'"):
        split_clips([Clip(tmp_path / "a", "x"), Clip(tmp_path / "b", "x")], by="thirds")
    for names in (["", ""], ["x", "y"]):
        clips = [Clip(tmp_path / str(i), name) for i, name in enumerate(names)]
        training, held_out, by = split_clips(clips)
        assert by == "clip" and len(training) == len(held_out) == 1


# Batches


def test_a_batch_depends_on_seed_and_step_only(tmp_path):
    clips = clips_in(tmp_path, 11)
    one, other = (SpeechDataset(clips, MEL, 2560, 4, seed=3) for _ in range(2))
    forward = [one[step] for step in range(9)]
    for step in reversed(range(9)):
        again = other[step]
        assert torch.equal(again["audio"], forward[step]["audio"])
        assert torch.equal(again["mel"], forward[step]["mel"])
    changed = SpeechDataset(clips, MEL, 2560, 4, seed=4)[0]
    assert not torch.equal(changed["audio"], forward[0]["audio"])


def test_processes_share_a_batch(tmp_path):
    clips = clips_in(tmp_path, 5)
    whole = SpeechDataset(clips, MEL, 2560, 4)[6]
    parts = [SpeechDataset(clips, MEL, 2560, 4, rank=r, world_size=2)[6] for r in range(2)]
    assert torch.equal(torch.cat([p["audio"] for p in parts]), whole["audio"])


def test_every_clip_is_used_once_an_epoch(tmp_path):
    data = SpeechDataset([Clip(tmp_path / str(i), "") for i in range(10)], MEL, 2560, 4)
    epochs = [[data.clip_of(p) for p in range(e * 10, e * 10 + 10)] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_crops_of_audio_and_mel_belong_together(tmp_path):
    data = SpeechDataset(clips_in(tmp_path, 3), MEL, 5120, 3)
    starts = set()
    for step in range(5):
        batch = data[step]
        assert batch["audio"].shape == (3, 5120) and batch["mel"].shape == (3, 128, 20)
        inner = log_mel(batch["audio"], MEL)[:, :, 2:-2]  # edges see real neighbours, not mirrors
        torch.testing.assert_close(batch["mel"][:, :, 2:-2], inner, rtol=0, atol=1e-4)
        starts |= {float(audio[0]) for audio in batch["audio"]}
    assert len(starts) > 10


def test_short_clips_are_padded_and_other_rates_resampled(tmp_path):
    short = Clip(noise(tmp_path / "short.wav", seconds=0.05), "")
    fast = Clip(noise(tmp_path / "fast.wav", seconds=1.0, rate=48000), "")
    data = SpeechDataset([short, fast], MEL, 2560, 2)
    batch = data[0]
    assert batch["audio"].shape == (2, 2560) and batch["skipped"] == []
    padded = next(a for a in batch["audio"] if a[800:].abs().max() == 0)
    assert padded[:800].abs().max() > 0.01
    assert sorted(batch["frames"]) == [4, 10]  # of speech, the others are padding
    assert len(data.frames(10**6)) == 4 + 63
    assert data.load(1)[0].shape[0] == pytest.approx(RATE, abs=256)


REASONS = {
    "002": "not readable",
    "005": "no such file",
    "006": "silent, peak 0",
    "007": "peak 3.7e+19 is above",
}


def test_bad_clips_are_counted_logged_and_replaced(tmp_path, caplog):
    clips = clips_in(tmp_path, 8)
    clips[2].path.write_bytes(b"garbage")
    clips[5].path.unlink()
    noise(clips[6].path, level=0.0)
    soundfile.write(clips[7].path, np.full(8000, 3.7e19), RATE, "FLOAT")
    data = SpeechDataset(clips, MEL, 2560, 4)
    batches = [data[step] for step in range(6)]
    assert sorted(i for b in batches for i in b["skipped"]) == [2, 5, 6, 7]
    assert all(b["mel"].isfinite().all() for b in batches)
    assert all(b["audio"].abs().amax(1).min() > 0.01 for b in batches)
    for name, why in REASONS.items():
        assert caplog.text.count(f"{name}.wav: {why}") == 1
    assert data.frames(10**6).shape[0] == 4 * 63


def test_bad_held_out_clips_are_counted_logged_and_left_out(tmp_path, caplog):
    clips = clips_in(tmp_path, 6)
    soundfile.write(clips[1].path, np.full(8000, 3.7e19), RATE, "FLOAT")
    soundfile.write(clips[4].path, np.full((8000, 2), 3e38), 44100, "FLOAT")
    clips[5].path.write_bytes(clips[5].path.read_bytes()[:9999])
    held = read_held_out(clips, MEL)
    assert [clip for clip, _, _ in held] == [clips[i] for i in (0, 2, 3)]
    assert all(audio.isfinite().all() and mel.isfinite().all() for _, audio, mel in held)
    reasons = ("001.wav: peak 3.7e+19", "004.wav: peak 3.0e+38", "005.wav: truncated")
    for count, why in enumerate(reasons, start=1):
        reason = f"left out of the held-out clips ({count} so far): {tmp_path}/{why}"
        assert caplog.text.count(reason) == 1


def test_too_many_bad_held_out_clips_stop_training(tmp_path):
    clips = clips_in(tmp_path, 4)
    for clip in clips[:3]:
        clip.path.write_bytes(b"garbage")
    assert len(read_held_out(clips[1:] + clips[3:], MEL)) == 2
    with pytest.raises(DataError, match=r"3 of 4 held-out clips are unusable; last: .*002\.wav"):
        read_held_out(clips, MEL)
    with pytest.raises(DataError, match="no held-out clips"):
        read_held_out([], MEL)


def test_odd_names_and_clips_of_one_sample(tmp_path, caplog):
    """A name that is not UTF-8, and a sample too short to resample, are at most skipped."""
    clips_in(tmp_path, 6)
    one = noise(tmp_path / "one.wav", seconds=1 / 48000, rate=48000)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    noise(tmp_path / "plain.wav").rename(odd)
    found = find_clips(tmp_path)
    assert {one, odd} <= {c.path for c in found} and len(found) == 8
    assert sum(map(len, split_clips(found)[:2])) == 8
    data = SpeechDataset(found, MEL, 2560, 4, by_length=True)
    for step in range(12):
        data[step]
    assert {found[i].path for i in data.bad} <= {one, odd} and one in {
        found[i].path for i in data.bad
    }
    assert "too short" in caplog.text


def test_long_clips_count_by_their_length(tmp_path):
    clips = [Clip(noise(tmp_path / "long.wav", seconds=3.2), "")]
    clips.append(Clip(noise(tmp_path / "short.wav", seconds=0.32), ""))
    by_length = SpeechDataset(clips, MEL, 5120, 4, by_length=True)
    assert [by_length.clip_of(p) for p in range(11)].count(0) == 10
    assert sorted(SpeechDataset(clips, MEL, 5120, 4).clip_of(p) for p in range(2)) == [0, 1]


def test_folders_that_number_files_anew_hold_out_different_ones(tmp_path):
    clips = [Clip(tmp_path / f"{a:02d}" / f"{b:02d}.wav", "") for a in range(20) for b in range(10)]
    names = {c.path.name for c in split_clips(clips)[1]}
    assert len(names) > 5


def test_too_many_bad_clips_stop_training(tmp_path):
    clips = clips_in(tmp_path, 4)
    for clip in clips[:3]:
        clip.path.write_bytes(b"garbage")
    data = SpeechDataset(clips, MEL, 2560, 4)
    with pytest.raises(DataError, match=r"3 of 4 clips are unusable; last: .*\.wav"):
        data[0]


def test_memory_of_cached_clips_is_bounded(tmp_path):
    data = SpeechDataset(clips_in(tmp_path, 12), MEL, 2560, 4, cache_bytes=300_000)
    for step in range(6):
        data[step]
    assert data._cached_bytes <= 300_000 and 1 <= len(data._cache) < 12
    total = sum(t.nbytes for entry in data._cache.values() for t in entry[:2])
    assert data._cached_bytes == total


def test_dataset_refuses(tmp_path):
    clips = clips_in(tmp_path, 1)
    with pytest.raises(DataError, match="no clips"):
        SpeechDataset([], MEL, 2560, 4)
    with pytest.raises(ValueError, match="multiple of hop_length 256, got 2500"):
        SpeechDataset(clips, MEL, 2500, 4)
    with pytest.raises(ValueError, match="multiple of 2 processes, got 3"):
        SpeechDataset(clips, MEL, 2560, 3, world_size=2)
