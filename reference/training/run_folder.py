"""The folder a run leaves behind: config, metrics, results, checkpoints, pictures, audio."""

import csv
import dataclasses
import io
import json
import time
from pathlib import Path
from typing import Any

from ..atomic import write_atomically
from ..errors import CheckpointError
from .config import TrainConfig

RUNS = Path("runs")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of one run, and its small files."""

    path: Path

    @classmethod
    def new(cls, preset: str, out: str | Path | None = None) -> "RunFolder":
        """Make `runs/<preset>-<time>/`, or `out`, which must be empty or absent.

        Raises:
            CheckpointError: `out` holds files.
        """
        path = Path(out) if out else RUNS / f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
        if path.exists() and any(path.iterdir()):
            raise CheckpointError(f"{path}: not empty; choose another --out, or --resume it")
        (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def existing(cls, path: str | Path | None) -> "RunFolder":
        """Open a run to resume; without a path the latest under `runs/`.

        Raises:
            CheckpointError: there is none.
        """
        if path is None:
            runs = sorted(RUNS.glob("*/config.json"), key=lambda p: p.stat().st_mtime)
            if not runs:
                raise CheckpointError(f"{RUNS.resolve()}: holds no run to resume")
            path = runs[-1].parent
        if not (Path(path) / "config.json").is_file():
            raise CheckpointError(f"{path}: holds no config.json, so it is not a run folder")
        return cls(Path(path))

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
        write_atomically(self.path / "config.json", json.dumps(document, indent=2).encode())

    def read_config(self) -> tuple[TrainConfig, dict[str, Any]]:
        """What `write_config` saved.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            document = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
            return TrainConfig.from_dict(document["train"]), document["run"]
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(f"{self.path / 'config.json'}: damaged: {error!r}") from error

    def results(self) -> dict[str, Any]:
        """Figures of the stages finished so far."""
        path = self.path / "results.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def add_results(self, stage: str, figures: dict[str, Any]) -> None:
        """Save the figures of a finished stage."""
        results = self.results() | {stage: figures}
        content = json.dumps(results, indent=2).encode()
        write_atomically(self.path / "results.json", content)


class MetricsTable:
    """A CSV of figures by step; reopened, it drops rows past the last checkpoint."""

    def __init__(self, path: Path, completed_steps: int) -> None:
        self.path = path
        rows = [row for row in read_metrics(path) if int(row["step"]) <= completed_steps]
        self.columns = list(rows[0]) if rows else ["step"]
        self.rows = rows
        if path.exists():
            self._rewrite()

    def add(self, step: int, figures: dict[str, float]) -> None:
        """Append one row; a new column rewrites the file."""
        row = {"step": str(step)} | {name: f"{value:.9g}" for name, value in figures.items()}
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        if new or not self.path.exists():
            self.columns += new
            self._rewrite()
            return
        try:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot append: {error.strerror}") from error

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, text.getvalue().encode())


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Complete rows of a metrics table; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        lines = file.readlines()
    whole = [line for line in lines if line.endswith("\n")]
    return [row for row in csv.DictReader(whole) if row.get("step", "").isdigit()]
