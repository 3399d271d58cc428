"""The folder a run leaves behind: config, metrics, results, checkpoints, pictures, audio.

While a run trains it holds the lock of its folder, which the system gives back when the process
ends, however it ends. So two processes never write into one folder, and a killed run can go on.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ..atomic import is_leftover, make_folder, remove_leftovers, write_atomically
from ..errors import CheckpointError, TrainingError
from ..reading import read_json
from .config import TrainConfig
from .field_types import require_field_types, require_type

RUNS = Path("runs")
LOCK = ".lock"
NO_OBJECT = "damaged: expected a JSON object"


class Description(TypedDict):
    """What a run is besides its config."""

    data: str  # "shipped speech", or an absolute path
    split: str
    stage: str
    number: NotRequired[int]  # among the runs beside it; from 0.3 on
    fingerprint: NotRequired[str]  # of the clips; until 0.2


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of one run, and its small files."""

    path: Path

    @classmethod
    def new(cls, preset: str, out: str | Path | None, held: contextlib.ExitStack) -> "RunFolder":
        """Make a folder for a run, and lock it.

        Args:
            preset: in the name of the folder.
            out: the folder: absent, empty, or what a run left that was killed before it began. By
                default `runs/<preset>-<time>`, with -2, -3 ... where that is taken.
            held: keeps the lock until it is closed.

        Raises:
            CheckpointError: `out` holds files or is in use, or no folder can be made.
        """
        if out:
            folder = cls(Path(out))
            folder._claim(held)
        else:
            folder = cls._named(f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}", held)
        remove_leftovers(folder.path)
        make_folder(folder.clips.parent)
        return folder

    @classmethod
    def _named(cls, name: str, held: contextlib.ExitStack) -> "RunFolder":
        """Make and lock `runs/<name>`, or the first of `<name>-2`, `<name>-3` ... that is free."""
        make_folder(RUNS)
        for number in itertools.count(1):
            folder = cls(RUNS / (name if number == 1 else f"{name}-{number}"))
            try:
                folder.path.mkdir()  # the one moment that decides whose it is
            except FileExistsError:
                continue
            except OSError as error:
                raise CheckpointError(f"{folder.path}: cannot make it: {error.strerror}") from error
            if folder._locked(held):
                break  # otherwise somebody's --out was the same, and a moment earlier
        return folder

    def _claim(self, held: contextlib.ExitStack) -> None:
        """Make and lock the folder, unless there is more in it than a killed beginning leaves."""
        make_folder(self.path)
        # No lock file is put beside somebody's files. Ours come after a lock file: in this order.
        if any(self.path.iterdir()) and not (self.path / LOCK).exists():
            raise CheckpointError(f"{self.path}: not empty; choose another --out")
        self.lock(held)
        if self.config.exists():
            raise CheckpointError(f"{self.path}: holds a run; choose another --out, or --resume it")
        ours = {self.path / LOCK, self.clips.parent, self.clips}
        for path in self.path.rglob("*"):
            if path not in ours and not is_leftover(path):
                raise CheckpointError(f"{self.path}: not empty, holds {path.name}")

    @classmethod
    def existing(cls, path: str | Path | None) -> "RunFolder":
        """Open a run; without a path the latest under `runs/`.

        Raises:
            CheckpointError: there is none.
        """
        if path is None:
            return cls._latest()
        folder = cls(Path(path))
        if not folder.config.is_file():
            raise CheckpointError(f"{path}: holds no config.json, so it is not a run folder")
        return folder

    @classmethod
    def _latest(cls) -> "RunFolder":
        """The run under `runs/` with the greatest number: the one begun last, whatever the clock
        said. Equal numbers have runs begun at once; none (0) those begun before there were numbers.
        """
        runs = [cls(path.parent) for path in RUNS.glob("*/config.json")]
        if not runs:
            raise CheckpointError(f"{RUNS.resolve()}: holds no run to resume")
        try:
            order = {run: (run.number(), run.config.stat().st_mtime_ns) for run in runs}
        except CheckpointError as error:
            raise CheckpointError(f"{error}; so which run is the latest? Name one") from error
        return max(runs, key=lambda run: (*order[run], run.path.name))

    def number(self) -> int:
        """The run's number among those beside it."""
        return self._description()[1].get("number", 0)

    def next_number(self) -> int:
        """One more than the greatest number of the runs beside this folder."""
        numbers = [0]
        for path in self.path.parent.glob("*/config.json"):
            with contextlib.suppress(CheckpointError):  # somebody else's, or damaged: has no number
                numbers.append(RunFolder(path.parent).number())
        return max(numbers) + 1

    def lock(self, held: contextlib.ExitStack) -> None:
        """Keep other processes from training here until `held` is closed or this process ends.

        Raises:
            CheckpointError: another one trains here, or the folder cannot be written to.
        """
        if not self._locked(held):
            raise CheckpointError(f"{self.path}: in use: another process trains in this folder")

    def _locked(self, held: contextlib.ExitStack) -> bool:
        from filelock import FileLock, Timeout  # who only reads runs needs no lock

        try:
            held.enter_context(FileLock(self.path / LOCK, timeout=0))
        except Timeout:
            return False
        except OSError as error:
            raise CheckpointError(f"{self.path / LOCK}: cannot lock: {error.strerror}") from error
        return True

    @property
    def config(self) -> Path:
        """What the run does; the file that makes a folder a run."""
        return self.path / "config.json"

    @property
    def clips(self) -> Path:
        """Table of the clips that the run was begun with."""
        return self.path / "checkpoints" / "clips.csv"

    @property
    def state(self) -> Path:
        """Training state of the stage in progress."""
        return self.path / "checkpoints" / "state.pt"

    def model(self, stage: str) -> Path:
        """Model checkpoint of a stage."""
        return self.path / "checkpoints" / f"{stage}.json"

    def begun(self, stage: str) -> bool:
        """Whether training of a stage has left anything."""
        return self.metrics(stage).exists()

    def metrics(self, stage: str) -> Path:
        """Metrics table of a stage."""
        return self.path / f"metrics-{stage}.csv"

    def write_config(self, config: TrainConfig, **run: Any) -> None:
        """Save the config, and what else describes the run (data, split, stages)."""
        document = {"train": dataclasses.asdict(config), "run": run}
        write_atomically(self.config, json.dumps(document, indent=2).encode())

    def read_config(self) -> tuple[TrainConfig, dict[str, Any]]:
        """What `write_config` saved.

        Raises:
            CheckpointError: the file is damaged, or a value has another type; names it.
        """
        saved, run = self._description()
        try:
            config = TrainConfig.from_dict(saved)
            if run["stage"] not in ("all", *config.recipes):
                raise ValueError(f"run: stage: {run['stage']!r} has no recipe")
        except (KeyError, RuntimeError, TypeError, ValueError) as error:  # torch's too
            raise self._damaged(error) from error
        return config, run

    def _description(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The two parts of `config.json`, of which the second is checked."""
        document = read_json(self.config, NO_OBJECT)
        try:
            saved, run = document["train"], document["run"]
            require_type("train", saved, dict)
            require_type("run", run, dict)
            require_field_types(Description, run, "run: ")
            for name in Description.__required_keys__ - run.keys():
                raise KeyError(f"run: {name}")
        except (KeyError, TypeError) as error:
            raise self._damaged(error) from error
        return saved, run

    def _damaged(self, error: Exception) -> CheckpointError:
        what = f"lacks {error}" if isinstance(error, KeyError) else error
        return CheckpointError(f"{self.config}: damaged: {what}")

    def results(self) -> dict[str, Any]:
        """Figures of the stages finished so far.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = self.path / "results.json"
        results = read_json(path, NO_OBJECT) if path.exists() else {}
        for stage, figures in results.items():
            if not isinstance(figures, dict):
                raise CheckpointError(f"{path}: damaged: {stage}: no figures, but {figures!r:.40}")
        return _each(results, lambda figure: math.nan if figure is None else figure)

    def add_results(self, stage: str, figures: dict[str, Any]) -> None:
        """Save the figures of a finished stage; one that is not finite, which JSON lacks, as
        null."""
        lost = lambda figure: isinstance(figure, float) and not math.isfinite(figure)
        results = self.results() | {stage: figures}
        results = _each(results, lambda figure: None if lost(figure) else figure)
        content = json.dumps(results, indent=2, allow_nan=False).encode()
        write_atomically(self.path / "results.json", content)


def finished_checkpoint(place: str | Path, stage: str) -> Path:
    """The absolute path of a stage's model checkpoint, from that or the run that made it.

    Raises:
        CheckpointError: `place` is a folder, but not of a run.
        TrainingError: the run has not finished the stage, so that its model will still change.
    """
    path = Path(place).resolve()
    if path.is_dir():
        folder = RunFolder.existing(path)
    else:
        folder = RunFolder(path.parent.parent)
        if path != folder.model(stage) or not folder.config.is_file():
            return path  # of no run
    if stage not in folder.results():
        raise TrainingError(
            f"{place}: has not finished its {stage}; --resume {folder.path} --stage {stage}"
        )
    return folder.model(stage)


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Figures, in dictionaries inside dictionaries, changed one by one."""
    if isinstance(value, dict):
        return {name: _each(inner, change) for name, inner in value.items()}
    return change(value)
