"""What became of each file: a progress bar, lines for people, or JSON for programs."""

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from ..reference.errors import AudioFormatError, CheckpointError, CodeFileError
from .existing import TargetError
from .places import Pair

# Of a file; the others go on.
FAULTS = AudioFormatError, CheckpointError, CodeFileError, TargetError


class Report:
    """Collects what is done, and shows how far it is.

    Attributes:
        as_json: print one JSON object at the end, instead of lines.
        files: an entry for each file: source, target, status ("done", "skipped" or "failed"),
            seconds of audio; of a file that was written, its bytes, and whether it replaced one; of
            one that failed, the error.
    """

    def __init__(self, command: str, as_json: bool) -> None:
        self.as_json = as_json
        self.files: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._command = command
        self._began = time.perf_counter()
        self._worked = 0.0  # seconds of audio
        self._bar: Any = None

    @contextlib.contextmanager
    def progress(self, seconds: float) -> Iterator[Self]:
        """A bar over so many seconds of audio, on stderr, if that is a terminal."""
        from tqdm import tqdm

        form = "{desc}{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio{postfix}"
        self._began = time.perf_counter()
        with tqdm(total=seconds, disable=None, bar_format=form, file=sys.stderr) as self._bar:
            yield self
        self._bar = None

    def worked(self, seconds: float) -> None:
        """So many seconds of audio are through."""
        self._worked += seconds
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.factor:.1f} x real time", refresh=False)
            self._forward(seconds)

    def _forward(self, seconds: float) -> None:
        # Not past the end: the last frame of a clip is longer than what is left of it.
        self._bar.update(min(seconds, self._bar.total - self._bar.n))

    @property
    def factor(self) -> float:
        """Seconds of audio in a second."""
        return self._worked / max(time.perf_counter() - self._began, 1e-9)

    def done(self, pair: Pair, seconds: float, replaced: bool, peak: float = 0.0) -> None:
        """A file was written, in place of one that was there if it is `replaced`."""
        size = pair.target.stat().st_size
        self._add(pair, "done", seconds, bytes=size, replaced=replaced)
        if peak > 1:
            self.note(f"{pair.target}: peak {peak:.2f} is beyond full scale, clipped")

    def skipped(self, pair: Pair, seconds: float) -> None:
        """What would be written is there."""
        self._add(pair, "skipped", seconds)
        if self._bar is not None:
            self._forward(seconds)

    def failed(self, pair: Pair, why: str | Exception) -> None:
        """A file could not be read or written; the others go on."""
        self._add(pair, "failed", 0.0, error=str(why))

    def note(self, text: str) -> None:
        """Something to know that is no failure."""
        self.notes.append(text)
        self._say(f"note: {text}")

    def _add(self, pair: Pair, status: str, seconds: float, **more: Any) -> None:
        entry = {"source": str(pair.source), "target": str(pair.target), "status": status}
        self.files.append(entry | {"seconds": seconds} | more)
        if status == "failed":
            self._say(f"error: {more['error']}")

    def _say(self, line: str) -> None:
        if self._bar is None:
            print(line, file=sys.stderr)
        else:
            self._bar.write(line, file=sys.stderr)

    def finish(self) -> int:
        """Print what there is to say; returns the exit code: 1 if a file failed, else 0."""
        counts = Counter(entry["status"] for entry in self.files)
        took = time.perf_counter() - self._began
        seconds = sum(entry["seconds"] for entry in self.files if entry["status"] == "done")
        size = sum(entry.get("bytes", 0) for entry in self.files)
        replaced = sum(entry.get("replaced", False) for entry in self.files)
        summary = {
            "command": self._command,
            **{status: counts[status] for status in ("done", "skipped", "failed")},
            "replaced": replaced,
            "seconds_of_audio": seconds,
            "seconds_taken": took,
            "real_time_factor": seconds / took,
            "bytes": size,
        }
        if self.as_json:
            print(json.dumps(summary | {"files": self.files, "notes": self.notes}, indent=2))
        else:
            line = f"{counts['done']} written" + (f" ({replaced} replaced)" if replaced else "")
            line += f", {counts['skipped']} already there"
            if counts["failed"]:
                line += f", {counts['failed']} failed"
            if counts["done"]:
                line += (
                    f": {seconds:.1f} s of audio in {took:.1f} s ({seconds / took:.1f} x real "
                    f"time), {size:,} bytes"
                )
            print(line)
        return 1 if counts["failed"] else 0


def make_parent(path: Path) -> None:
    """The folder that a file is written to; raises CheckpointError."""
    from ..reference.atomic import make_folder

    make_folder(path.parent)
