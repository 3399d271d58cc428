"""The folder of a run: whose it is, which is the latest, and what damage to its files says."""

import contextlib
import copy
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

pytest.importorskip("soundfile")
pytest.importorskip("safetensors")

from muomni_fast.reference.errors import CheckpointError  # noqa: E402
from muomni_fast.reference.training import run_folder  # noqa: E402
from muomni_fast.reference.training.metrics import MetricsTable, read_metrics  # noqa: E402
from muomni_fast.reference.training.presets import preset  # noqa: E402
from muomni_fast.reference.training.run_folder import RunFolder  # noqa: E402

RUNNERS = 8
DESCRIPTION = {"data": "shipped speech", "split": "auto", "stage": "all", "number": 1}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def held() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def race(out: str | None, rounds: int) -> list[list[Path | str]]:
    """In each round all runners ask for a folder at once: the folders they got, or the errors."""
    barrier = Barrier(RUNNERS)

    def ask(name: str | None, held: contextlib.ExitStack) -> Path | str:
        barrier.wait()
        try:
            return RunFolder.new("smoke", name, held).path
        except CheckpointError as error:
            return str(error)

    answers = []
    with ThreadPoolExecutor(RUNNERS) as pool:
        for i in range(rounds):
            name = f"{out}-{i}" if out else None
            with contextlib.ExitStack() as held:
                stacks = [held.enter_context(contextlib.ExitStack()) for _ in range(RUNNERS)]
                answers.append(list(pool.map(ask, [name] * RUNNERS, stacks)))
    return answers


def test_runs_begun_in_one_second_have_folders_of_their_own(monkeypatch):
    monkeypatch.setattr(run_folder.time, "strftime", lambda _: "20260101-000000")
    found = [folder for answer in race(None, 4) for folder in answer]
    suffixes = ["", *(f"-{n}" for n in range(2, 4 * RUNNERS + 1))]
    assert {str(path) for path in found} == {f"runs/smoke-20260101-000000{s}" for s in suffixes}


def test_one_of_those_who_ask_for_a_folder_gets_it():
    for i, answers in enumerate(race("out", 25)):
        assert answers.count(Path(f"out-{i}")) == 1
        others = {answer for answer in answers if isinstance(answer, str)}
        assert others == {f"out-{i}: in use: another process trains in this folder"}


def test_a_folder_that_holds_anything_is_left_as_it_is(held):
    Path("full").mkdir()
    Path("full/precious.txt").write_text("x")
    with pytest.raises(CheckpointError, match="full: not empty; choose another --out"):
        RunFolder.new("smoke", "full", held)
    assert os.listdir("full") == ["precious.txt"]
    with pytest.raises(CheckpointError, match=r"precious.txt: cannot make this folder"):
        RunFolder.new("smoke", "full/precious.txt", held)


def test_what_a_run_killed_before_it_began_leaves_can_be_used():
    with contextlib.ExitStack() as first:
        folder = RunFolder.new("smoke", "out", first)
    folder.clips.write_text("file")
    leftovers = [Path("out/.config.json.tmp"), Path("out/checkpoints/.clips.csv.tmp")]
    for path in leftovers:
        path.write_text("{")
    with contextlib.ExitStack() as second:
        assert RunFolder.new("smoke", "out", second) == folder
        assert not any(path.exists() for path in leftovers)
    folder.write_config(preset("smoke"), **DESCRIPTION)
    message = "out: holds a run; choose another --out, or --resume it"
    with pytest.raises(CheckpointError, match=message), contextlib.ExitStack() as third:
        RunFolder.new("smoke", "out", third)
    folder.config.rename("out/notes.json")
    message = "out: not empty, holds notes.json"
    with pytest.raises(CheckpointError, match=message), contextlib.ExitStack() as fourth:
        RunFolder.new("smoke", "out", fourth)


def begin(name: str, held: contextlib.ExitStack) -> RunFolder:
    folder = RunFolder.new("smoke", f"runs/{name}", held)
    description = DESCRIPTION | {"number": folder.next_number()}
    folder.write_config(preset("smoke"), **description)
    return folder


def test_the_latest_run_is_the_one_begun_last_whatever_the_clock_says(held):
    with pytest.raises(CheckpointError, match="holds no run"):
        RunFolder.existing(None)
    names = ["c", "a", "b"]
    for age, name in enumerate(names):  # the clock goes back from run to run
        folder = begin(name, held)
        os.utime(folder.config, (10**9 - age, 10**9 - age))
        assert RunFolder.existing(None).path.name == name
        assert folder.number() == age + 1
    config, description = folder.read_config()
    first = RunFolder(Path("runs/c"))
    first.write_config(config, **(description | {"number": 1}))  # as a resumed run may
    assert RunFolder.existing(None).path.name == "b"


def test_runs_of_earlier_versions_have_no_number_and_go_by_their_time(held):
    for name, age in (("old", 5), ("older", 9)):
        folder = begin(name, held)
        description = {k: v for k, v in DESCRIPTION.items() if k != "number"}
        folder.write_config(preset("smoke"), **description)
        os.utime(folder.config, (10**9 - age, 10**9 - age))
    assert RunFolder.existing(None).path.name == "old"
    assert begin("new", held).number() == 1
    assert RunFolder.existing(None).path.name == "new"


def test_a_damaged_run_hides_which_is_the_latest_and_stops_no_new_one(held):
    begin("one", held).config.write_text("{")
    with pytest.raises(CheckpointError, match="one/config.json: damaged: .*Name one"):
        RunFolder.existing(None)
    assert begin("two", held).number() == 1


# Damage


@pytest.fixture
def folder(held: contextlib.ExitStack) -> RunFolder:
    return begin("run", held)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """All values inside a JSON document, each with the keys that lead to it."""
    if place:
        yield place, value
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*place, key))


def changed(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    document = copy.deepcopy(document)
    at = document
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return document


WRONG = ["x", [], {}, None, True, -3, 0, 0.5, 1e400, 10**400, [None], {"x": 1}]


def fits(place: tuple[Any, ...], old: Any, new: Any) -> bool:
    if place[-1] == "ema_decay":
        return new is None or type(new) in (int, float)
    return type(new) is type(old) or (type(old) is float and type(new) is int)


def test_a_wrong_value_in_a_config_is_an_error_that_names_the_file(folder):
    """Every value replaced by others of all types."""
    whole = json.loads(folder.config.read_text())
    refused = 0
    for place, old in places(whole):
        if "model" in place[:-1]:
            continue  # arguments of a module, which checks them
        for wrong in WRONG:
            folder.config.write_text(json.dumps(changed(whole, place, wrong)))
            try:
                folder.read_config()
            except CheckpointError as error:
                assert str(error).startswith(f"{folder.config}: damaged: "), (place, wrong)
                refused += 1
            else:
                assert fits(place, old, wrong), (place, wrong)
    assert refused > 300


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (("train", "seed"), "3", "seed: expected int, got '3'"),
        (("train", "recipes", "rvq", "steps"), 0, "rvq: steps: expected at least 1, got 0"),
        (("train", "log_every"), 0, "log_every: expected at least 1, got 0"),
        (("train", "mel", "fmin"), [], r"mel: fmin: expected float, got \[\]"),
        (("train", "recipes", "rvq", "init"), "rvq.json", "init and init_digest: expected both"),
        (("train", "recipes", "rvq", "speed"), 1, "unexpected keyword argument 'speed'"),
        (("run", "data"), 7, "run: data: expected str, got 7"),
        (("run", "stage"), "singer", "run: stage: 'singer' has no recipe"),
        (("run",), {}, "lacks 'run: "),
    ],
)
def test_what_is_wrong_in_a_config_is_named(folder, place, wrong, message):
    whole = json.loads(folder.config.read_text())
    folder.config.write_text(json.dumps(changed(whole, place, wrong)))
    with pytest.raises(CheckpointError, match=rf"config.json: damaged: .*{message}"):
        folder.read_config()


@pytest.mark.parametrize("name", ["config.json", "results.json"])
def test_files_cut_anywhere_are_one_error(folder, name):
    folder.add_results("rvq", {"steps": 3, "trained": {"mel_mse": float("nan")}})
    assert math.isnan(folder.results()["rvq"]["trained"]["mel_mse"])
    folder.add_results("rvq", {"steps": 3, "trained": {"mel_mse": 0.5}})
    path = folder.path / name
    whole = path.read_bytes()
    read = {"config.json": folder.read_config, "results.json": folder.results}[name]
    read()
    for content in (
        *(whole[: len(whole) * i // 9] for i in range(9)),
        b"[]",
        b"\xff",
        b"3",
        b"[" * 9999,
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}: damaged: "):
            read()
    path.write_text('{"rvq": 3}')
    with pytest.raises(CheckpointError, match=f"{name}: damaged: "):
        read()


def test_metrics_survive_what_kills_and_disks_do_to_them(folder, caplog):
    path = folder.metrics("rvq")
    table = MetricsTable(path, 0)
    for step in range(1, 5):
        table.add(step, {"loss": step / 2})
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])  # killed while it wrote the last line
    assert [row["step"] for row in read_metrics(path)] == ["1", "2", "3"] and not caplog.text
    for damaged in (
        b"\0\0\0\0\r\n",
        b"2,0.5,9\r\n",
        b"2\r\n",
        b"2,x\r\n",
        b"\xb2,1\r\n",
        b"\xff\n",
    ):
        caplog.clear()
        path.write_bytes(whole + damaged)
        assert [row["step"] for row in MetricsTable(path, 9).rows] == ["1", "2", "3", "4"]
        assert f"{path}: damaged: 1 lines are left out" in caplog.text
        assert path.read_bytes() == whole
    table.path = Path("/dev/full")
    with pytest.raises(CheckpointError, match="/dev/full: cannot append: No space left"):
        table.add(5, {"loss": 1.0})
    path.write_bytes(b"rubbish\r\n1,2\r\n")
    with pytest.raises(CheckpointError, match="metrics-rvq.csv: damaged: expected a column step"):
        MetricsTable(path, 9)
    assert path.read_bytes().startswith(b"rubbish")
