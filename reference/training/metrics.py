"""The table of a stage's figures by step."""

import csv
import io
import logging
from pathlib import Path

from ..atomic import write_atomically
from ..errors import CheckpointError

log = logging.getLogger(__name__)


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
        """Append one row; a new column rewrites the file.

        Raises:
            CheckpointError: the file cannot be written.
        """
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
    """Rows of a metrics table, steps ascending.

    A last line cut short by a kill is left out, and, with a warning, lines that hold anything but
    numbers: figures that went before are not worth stopping for.

    Raises:
        CheckpointError: the file cannot be read, or its first line names no step.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().decode(errors="replace").splitlines(keepends=True)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    try:
        whole = csv.DictReader(line for line in lines if line.endswith("\n"))
        if lines and "step" not in (whole.fieldnames or ()):
            raise CheckpointError(f"{path}: damaged: expected a column step, got {lines[0]!r:.60}")
        rows = list(whole)
    except csv.Error as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    sound = [row for row in rows if _is_sound(row)]
    if len(sound) < len(rows):
        log.warning("%s: damaged: %d lines are left out", path, len(rows) - len(sound))
    return sound


def _is_sound(row: dict[str, str]) -> bool:
    """Whether there is a number of a step, and a number or nothing in each other column."""
    try:
        for value in row.values():
            float("0" if value == "" else value)
        return row["step"].isdecimal()
    except (TypeError, ValueError):  # a line too long has a list, one too short None
        return False
