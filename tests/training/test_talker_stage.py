"""Training of the Talker: in the one loop, on one quantizer's codes, from texts."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from support.environment import ROOT, SPEECH
from support.training import assert_same, continued, losses, main, rows

from muomni_fast import DataError, reference

soundfile = pytest.importorskip("soundfile")
for module in ("safetensors", "soxr", "matplotlib", "tqdm"):
    pytest.importorskip(module)

from support.talker_stage import Talker64  # noqa: E402

from muomni_fast.reference import Talker, train  # noqa: E402
from muomni_fast.reference.checkpoint import load_training_state, restore  # noqa: E402
from muomni_fast.reference.rvq.digest import quantizer_digest  # noqa: E402
from muomni_fast.reference.training import distributed, rvq_stage, trainer  # noqa: E402
from muomni_fast.reference.training.clips import find_clips, split_clips  # noqa: E402
from muomni_fast.reference.training.data import Corpus, read_held_out  # noqa: E402
from muomni_fast.reference.training.presets import presets  # noqa: E402
from muomni_fast.reference.training.run import load_required  # noqa: E402
from muomni_fast.reference.training.run_folder import RunFolder  # noqa: E402
from muomni_fast.reference.training.talker_data import CODES, TalkerData  # noqa: E402
from muomni_fast.reference.training.talker_stage import TalkerStage  # noqa: E402

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def few_start_frames() -> Iterator[None]:
    with mock.patch.object(rvq_stage, "START_FRAMES", 2000):  # its quality is of no matter here
        yield


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corner of the shipped speech: twelve clips of a second and a half at most, and texts."""
    folder = tmp_path_factory.mktemp("speech")
    lines = ["file,speaker,text"]
    for number, clip in enumerate(find_clips(SPEECH)[::5]):
        audio, rate = soundfile.read(clip.path)
        soundfile.write(folder / f"{number}.wav", audio[: rate + 700 * number], rate)
        lines.append(f'{number}.wav,{clip.speaker},"{(clip.text or "")[: 10 + number]}"')
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def quantizer(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the stage that the Talker requires."""
    folder = tmp_path_factory.mktemp("talker") / "quantizer"
    options = ["--preset", "smoke", "--stage", "rvq", "--steps", "2"]
    assert main(*options, "--data", speech / "clips.csv", "--out", folder) == 0
    return folder


def talker(folder: Path, *arguments: str) -> Path:
    assert main("--resume", folder, "--stage", "talker", *arguments) == 0
    return folder


@pytest.fixture(scope="module")
def whole(quantizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Talker's run, with its report."""
    folder = continued(quantizer, tmp_path_factory.mktemp("talker") / "whole")
    assert train.main(["--device", "cpu", "--resume", str(folder), "--stage", "talker"]) == 0
    return folder


def state(folder: Path) -> dict[str, Any]:
    return load_training_state(folder / "checkpoints" / "state.pt")


def stage_of(folder: Path) -> TalkerStage:
    run, config = RunFolder(folder), presets()["smoke"]
    return TalkerStage(config, reference, CPU, load_required(run, "talker", config, reference, CPU))


def corpus_of(speech: Path, **settings: Any) -> Corpus:
    return Corpus(split_clips(find_clips(speech / "clips.csv"), "auto")[0], **settings)


def test_it_learns_and_reports(whole):
    results = RunFolder(whole).results()["talker"]
    assert results["trained"]["nats"] < results["random"]["nats"] - 0.02
    report = (whole / "report.txt").read_text()
    for line in ("talker, held-out codes", "unigram, knows no text", "bigram, knows no text"):
        assert line in report
    assert "training sentences 0 come back code for code, ending by themselves" in report
    assert "from so few, new ones are not expected to be understood" in report
    assert "new sentences: rank of the true clip among those of its voice: " in report
    sounds = {path.name for path in (whole / "audio").glob("*talker*")}
    assert any(name.startswith("training-1-") for name in sounds)
    assert any(name.startswith("1-") for name in sounds)
    assert len(list(whole.glob("mels-*.png"))) >= 2
    assert {"nats", "accuracy_1", "held_out_nats_2"} <= rows(whole, "talker")[-1].keys()


def test_the_checkpoint_holds_the_quantizers_digest(whole):
    model, saved = restore(Talker, whole / "checkpoints" / "talker.json", "talker")
    rvq, _ = restore(reference.RVQ, whole / "checkpoints" / "rvq.json", "rvq")
    assert model.quantizer == saved.config["quantizer"] == quantizer_digest(rvq, 1)
    assert model.speakers == ("ada", "ben", "cal")


def test_stopped_and_resumed_is_bit_equal(quantizer, whole, tmp_path, monkeypatch):
    folder = continued(quantizer, tmp_path / "run")
    real = trainer.Trainer._train_step

    def step(self, batch):
        if self.step == 6:
            raise KeyboardInterrupt
        return real(self, batch)

    monkeypatch.setattr(trainer.Trainer, "_train_step", step)
    assert main("--resume", folder, "--stage", "talker") == 130
    assert state(folder)["step"] == 4
    monkeypatch.undo()
    talker(folder)
    assert_same(state(whole), state(folder))


@pytest.mark.parametrize("changed", ["quantizer", "texts"])
def test_other_codes_or_texts_are_refused_in_the_middle(
    quantizer, speech, tmp_path, monkeypatch, capsys, changed
):
    folder = continued(quantizer, tmp_path / "run")
    monkeypatch.setattr(trainer.Trainer, "_save", save_and_stop)
    assert main("--resume", folder, "--stage", "talker") == 130
    monkeypatch.undo()
    if changed == "quantizer":
        other, saved = restore(reference.RVQ, folder / "checkpoints" / "rvq.json", "rvq")
        other.codebooks[0].weight.data += 0.1
        reference.checkpoint.save_model(
            folder / "checkpoints" / "rvq.json", "rvq", other, saved.mel, **saved.extra
        )
    else:
        monkeypatch.setattr(TalkerData, "digest", lambda self: "0" * 64)
    assert main("--resume", folder, "--stage", "talker") == 1
    assert f"does not fit this run: ValueError('{changed}: " in capsys.readouterr().err


def save_and_stop(self: trainer.Trainer) -> None:
    SAVE(self)
    raise KeyboardInterrupt


SAVE = trainer.Trainer._save


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Talkers in float64."""
    monkeypatch.setattr(TalkerStage, "model_class", classmethod(lambda cls, backend: Talker64))


def assert_equal_runs(folder: Path, other: Path) -> None:
    for name, value in state(other)["models"]["talker"].items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(
            state(folder)["models"]["talker"][name], value, rtol=0, atol=1e-6
        )
    there, here = losses(other, "talker"), losses(folder, "talker")
    assert len(set(there)) > 4
    np.testing.assert_allclose(here, there, rtol=1e-6)


def test_micro_batches_and_processes_equal_one_batch(quantizer, tmp_path, exact):
    """Of ragged items, which count by their codes."""
    one = talker(continued(quantizer, tmp_path / "one"))
    assert_equal_runs(talker(continued(quantizer, tmp_path / "parts", accumulate=2)), one)
    two = continued(quantizer, tmp_path / "two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = ROOT / "tests" / "support" / "talker_stage.py"
    done = subprocess.run(
        [*torchrun, str(script), "--device", "cpu", "--resume", str(two), "--stage", "talker"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal_runs(two, one)


def test_items_weigh_as_many_as_they_have_codes(quantizer, speech):
    stage = stage_of(quantizer)
    data = stage.dataset(corpus_of(speech))
    stage.begin()
    batch = data[0]
    result = stage.loss("talker", stage.split(batch, 1)[0])
    n_codebooks = stage.talker.n_codebooks
    assert result.weight == (n_codebooks * batch["lengths"] + 1).sum()
    lengths = batch["lengths"].tolist()
    assert max(lengths) > 1.1 * min(lengths)  # or it would show nothing


def test_codes_are_made_once(quantizer, speech, tmp_path, monkeypatch, caplog):
    stage = stage_of(quantizer)
    calls = []
    real = TalkerStage.encode
    monkeypatch.setattr(TalkerStage, "encode", lambda s, mel: calls.append(1) or real(s, mel))
    corpus = corpus_of(speech, keep=tmp_path)
    first = stage.dataset(corpus)
    assert len(calls) == len(corpus.clips) and (tmp_path / CODES).is_file()
    again = stage.dataset(corpus)
    assert len(calls) == len(corpus.clips)
    assert_same(dict(enumerate(first.codes)), dict(enumerate(again.codes)))
    os.utime(corpus.clips[0].path)  # a file that may be another
    stage.dataset(corpus)
    assert len(calls) == 2 * len(corpus.clips)
    stage.digest = "0" * 64  # a quantizer that is another
    stage.dataset(corpus)
    assert len(calls) == 3 * len(corpus.clips)
    (tmp_path / CODES).write_bytes(b"damaged")
    stage.dataset(corpus)
    assert len(calls) == 4 * len(corpus.clips) and "codes are made anew: " in caplog.text


def test_batches_are_a_function_of_the_step(quantizer, speech, tmp_path, monkeypatch):
    stage = stage_of(quantizer)
    data, again = (stage.dataset(corpus_of(speech, keep=tmp_path)) for _ in range(2))
    again[5]
    for step in (3, 0):
        assert_same(data[step], again[step])
    corpora = [corpus_of(speech, keep=tmp_path, rank=rank, world_size=2) for rank in (0, 1)]
    monkeypatch.setattr(distributed, "share", lambda value: value or kept)
    kept = load_training_state(tmp_path / CODES)["codes"]
    ranks = [stage.dataset(corpus)[3] for corpus in corpora]
    assert [*ranks[0]["lengths"], *ranks[1]["lengths"]] == [*data[3]["lengths"]]
    withheld = sum(int((data[step]["speakers"] == 0).sum()) for step in range(100))
    assert 0.05 < withheld / 400 < 0.2


def test_a_clip_without_text_or_that_cannot_be_read_is_left_out(quantizer, speech, caplog):
    stage = stage_of(quantizer)
    corpus = corpus_of(speech)
    clips = [*corpus.clips]
    object.__setattr__(clips[1], "text", " ")
    object.__setattr__(clips[3], "path", clips[3].path.with_name("missing.wav"))
    data = stage.dataset(Corpus(clips))
    assert len(data.texts) == len(clips) - 2 and data[0]["skipped"] == [3]
    assert "1 of 9 clips have no text to learn" in caplog.text
    assert "left out (1 so far): " in caplog.text


def test_a_file_that_several_lines_name_is_not_missing(quantizer, speech, caplog):
    """One that cannot be read among them is one, however often others are named."""
    stage, clips = stage_of(quantizer), [*corpus_of(speech).clips]
    missing = dataclasses.replace(clips[0], path=clips[0].path.with_name("missing.wav"))
    twice = [dataclasses.replace(clip, text="Again.") for clip in clips]
    data = stage.dataset(Corpus([*clips, *twice, missing]))
    assert len(data.texts) == 2 * len(clips)
    assert "left out (1 so far): " in caplog.text


def test_a_sentence_that_several_speakers_say_has_several_ranks(quantizer, speech, monkeypatch):
    stage = stage_of(quantizer)
    data = stage.dataset(corpus_of(speech))
    clips = [dataclasses.replace(clip, text="Yes.") for clip in data.clips[:4]]
    spoken = stage._spoken(read_held_out(clips, stage.config.mel))
    monkeypatch.setattr(stage, "_say", lambda *_: [codes for *_, codes in spoken])
    ranks = stage._ranks(data, spoken)
    assert [(r["text"], r["rank"]) for r in ranks] == [("Yes.", 1)] * 4
    assert [r["speaker"] for r in ranks] == [clip.speaker for clip in clips]


def test_a_manifest_without_text(quantizer, speech, tmp_path, caplog, capsys):
    """All stages but the Talker; asked for by name it is an error before anything is written."""
    table = speech / "bare.csv"
    table.write_text("file\n" + "".join(f"{i}.wav\n" for i in range(12)))
    options = ["--preset", "smoke", "--data", table]
    assert main(*options, "--stage", "talker", "--out", tmp_path / "run") == 1
    assert "talker: of the training clips, no clip has a text" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(*options, "--steps", "1", "--out", tmp_path / "run") == 0
    assert "talker is left out: of the training clips, no clip has a text" in caplog.text
    assert RunFolder(tmp_path / "run").results().keys() == {"rvq", "vocoder"}
    assert main("--resume", tmp_path / "run", "--stage", "talker") == 1
    assert "talker: no clip has a text" in capsys.readouterr().err
    stage = stage_of(quantizer)
    with pytest.raises(DataError, match="talker: no held-out clip has a text"):
        stage.validate(read_held_out(find_clips(table)[:1], stage.config.mel))


def test_only_clips_to_learn_from_have_a_text(speech, tmp_path, capsys):
    """Known before anything is trained, not at the first validation."""
    table = speech / "half.csv"
    table.write_text("file\n" + "".join(f"{i}.wav\n" for i in range(12)))
    _, held_out, _ = split_clips(find_clips(table))
    silent = {clip.path.name for clip in held_out}
    lines = [f"{i}.wav,{'' if f'{i}.wav' in silent else 'Yes.'}\n" for i in range(12)]
    table.write_text("file,text\n" + "".join(lines))
    options = ["--preset", "smoke", "--data", table, "--stage", "talker", "--out", tmp_path / "run"]
    assert main(*options) == 1
    assert "talker: of the held-out clips, no clip has a text" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
