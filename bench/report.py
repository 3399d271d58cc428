"""One table of everything that was measured, made of the files in `bench/results`.

python bench/report.py [--write]       # --write: into bench/RESULTS.md
"""

import argparse
import json
from pathlib import Path
from typing import Any

from gpu_step import read_lines

FOLDER = Path(__file__).resolve().parent
RESULTS, PAGE = FOLDER / "results", FOLDER / "RESULTS.md"
BEGIN, END = "<!-- report.py writes from here -->\n", "<!-- to here -->\n"
MISSING = "not yet measured"
Run = dict[str, dict[str, Any]]  # step -> figure -> value


def read_run(path: Path) -> Run:
    """The figures of one run on a GPU."""
    found: Run = {"file": {"name": path.stem}}
    for line in read_lines(path):
        if "figure" in line:
            found.setdefault(line["step"], {})[line["figure"]] = line["value"]
    return found


def runs() -> list[Run]:
    """All runs on GPUs, the newest first."""
    found = [read_run(path) for path in RESULTS.glob("*.jsonl")]
    return sorted(found, key=lambda run: (run["environment"]["date"], run["file"]["name"]))[::-1]


def gpu_table(runs: list[Run]) -> str:
    """Every figure that was predicted: floor, prediction, and what each run measured."""
    heads = [f"{run['environment']['gpu']}, {run['file']['name']}" for run in runs]
    heads = heads or ["H100", "H200"]
    rows = [["milliseconds", "floor, H100", "predicted, H100", *heads]]
    for line in json.loads((FOLDER / "predictions.json").read_text()):
        least, most = line["predicted"]
        predicted = f"{least:g}" if least == most else f"{least:g} - {most:g}"
        cells = [_measured(run.get(line["step"], {}), line) for run in runs] or [MISSING] * 2
        rows.append([line["what"], f"{line['floor']:g}", predicted, *cells])
    return _markdown(rows)


def _measured(figures: dict[str, Any], line: dict[str, Any]) -> str:
    value = figures.get(line["figure"])
    if value is None:
        return MISSING
    floor = figures.get("floor", line["floor"])
    least, most = line["predicted"]
    verdict = "as predicted" if least <= value <= most else "above" if value > most else "below"
    return f"{_short(value)} ({value / floor:.1f} x floor; {verdict})"


def _short(value: float) -> str:
    """Three digits."""
    return f"{float(f'{value:.3g}'):,g}"


def cpu_table() -> str:
    """`peers.py` on a CPU."""
    found = json.loads((RESULTS / "peers-cpu.json").read_text())
    rows = [["encoding", f"{found['machine']}, torch {found['torch']}, {found['date']}", "against"]]
    for shape, seconds in found["seconds"].items():
        for name, value in seconds.items():
            ratio = f"{value / seconds['muomni_fast']:.1f} x"
            rows.append([f"{shape}: {name}", f"{_short(1e3 * value)} ms", ratio])
    return _markdown(rows)


def _markdown(rows: list[list[str]]) -> str:
    head, *rest = [f"| {' | '.join(row)} |\n" for row in rows]
    return head + "|---" * len(rows[0]) + "|\n" + "".join(rest)


def report() -> str:
    """The tables."""
    return f"### GPU\n\n{gpu_table(runs())}\n### CPU\n\n{cpu_table()}"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into bench/RESULTS.md")
    if not parser.parse_args().write:
        print(report())
        return 0
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + report() + END + rest.split(END)[1])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
