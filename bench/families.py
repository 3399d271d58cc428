"""Other libraries' models before and after `muomni_fast.accelerate`: `python bench/families.py`.

Each family's part in the size that its library has by default, with random weights: its own code
and ours on the same input in one process, on one thread, by turns. Then the whole model around it,
as `whole_models.py` calls it, against a copy that is not accelerated. A family whose library is
not installed is named as missing.
"""

import argparse
import copy
import json
from collections.abc import Callable
from typing import Any

import torch
from family_models import FAMILIES, Family
from timing import about, interleaved, made_folder
from torch import Tensor
from whole_models import WHOLE

import muomni_fast
from muomni_fast.compat.adapter import adapter_of

FRAMES = {"forward": 40, "encode": 250}  # of each of two clips, by what a family is called with
ROWS = 256  # measured at once against float64
COLUMNS = "family | what | codes differing | wrong, theirs / ours | dB to theirs | dB to float64,"
COLUMNS += " theirs / ours | ms theirs / ours | times | whole model"


def snr(found: Tensor, exact: Tensor) -> float:
    """dB."""
    error = (found.double() - exact.double()).square().sum()
    return float(10 * torch.log10(exact.double().square().sum() / error))


def exact_codes(z: Tensor, books: list[Tensor]) -> Tensor:
    """(N, D) float64 -> (N, Q): the nearest codewords, residuals in float64 too."""
    found = []
    for rows in z.split(ROWS):
        codes = []
        for book in books:
            # Products order all but the nearest ties, which random weights do not have.
            near = book.square().sum(1) - 2 * rows @ book.t()
            codes.append(near.argmin(1))
            rows = rows - book[codes[-1]]
        found.append(torch.stack(codes, 1))
    return torch.cat(found)


def wrong_rows(part: Any, books: list[Tensor], x: Tensor, codes: Tensor) -> int:
    """Rows of (N, Q) codes that differ from those in float64, projection included."""
    double = copy.deepcopy(part).double()
    if getattr(double, "input_proj", None) is not None:
        x = double.input_proj(x.double()).transpose(1, 2)
    elif hasattr(double, "project_in"):
        x = double.project_in(x.double())
    else:
        x = x.double().transpose(1, 2)
    exact = exact_codes(x.flatten(0, 1), [book.double() for book in books])
    return int((codes != exact).any(1).sum())


@torch.no_grad()
def lines_of(family: Family, rounds: int, small: bool = False) -> list[dict[str, Any]]:
    """What a family's row of the table shows, for each method that is swapped."""
    torch.manual_seed(0)
    model = family.make(small)
    part: Any = model.get_submodule(family.part)
    kind = "forward" if hasattr(part, "conv_pre") else "encode"
    inputs = family.inputs(part, 8 if small else FRAMES[kind])
    report = muomni_fast.accelerate(model, slower=True)
    adapter = adapter_of(part)
    if adapter is None:
        return [{"family": family.name, "reason": str(report)}]
    found = []
    for name, arguments in inputs.items():
        ours = lambda name=name, given=arguments: getattr(part, name)(*given)
        theirs = lambda name=name, given=arguments: getattr(type(part), name)(part, *given)
        line: dict[str, Any] = {"family": family.name, "method": name, "dtype": "float32"}
        line["input"] = [list(argument.shape) for argument in arguments]
        results = theirs(), ours()
        if kind == "forward":
            double = copy.deepcopy(muomni_fast.restore(copy.deepcopy(part))).double()
            exact = getattr(double, name)(*(argument.double() for argument in arguments))
            line["snr"] = snr(results[1], results[0])
            line["snr_to_float64"] = [snr(result, exact) for result in results]
        elif name in ("encode", "forward"):
            codes = [result[1] if isinstance(result, tuple) else result for result in results]
            line["codes"] = codes[0].numel()
            line["codes_differing"] = int((codes[0] != codes[1]).sum())
            rows = [c.flatten(0, 1) if name == "forward" else c.flatten(1).t() for c in codes]
            books = adapter.books(part)
            wrong = [wrong_rows(part, books, arguments[0], each) for each in rows]
            line["wrong_rows"], line["rows"] = wrong, len(rows[0])
        else:
            line["snr"] = snr(results[1], results[0])
        seconds = interleaved({"theirs": theirs, "ours": ours}, rounds)
        line["ms"] = [1e3 * seconds[whose] for whose in ("theirs", "ours")]
        found.append(line)
    return found


@torch.no_grad()
def whole_of(name: str, rounds: int, small: bool = False) -> dict[str, Any]:
    """Times of a whole model and of its copy that is accelerated, by turns."""
    torch.manual_seed(0)
    theirs, call = WHOLE[name](small)
    ours = copy.deepcopy(theirs)
    muomni_fast.accelerate(ours, slower=True)
    results = call(theirs), call(ours)
    whole: dict[str, Any] = {"output": list(results[0].shape), "what": WHOLE[name].__doc__}
    if results[0].shape == results[1].shape:
        whole["snr"] = snr(results[1], results[0])
    runs = {"theirs": lambda: call(theirs), "ours": lambda: call(ours)}
    seconds = interleaved(runs, rounds, most=30.0)
    return whole | {"ms": [1e3 * seconds[whose] for whose in ("theirs", "ours")]}


def row_of(line: dict[str, Any]) -> str:
    """A line of the table in Markdown."""
    if "reason" in line:
        return f"| {line['family']} | {line['reason']} | | | | | | | |"
    pair: Callable[[str, str], str] = lambda key, form: (
        " / ".join(format(value, form) for value in line[key]) if key in line else ""
    )
    differing = f"{line['codes_differing']} of {line['codes']}" if "codes" in line else ""
    wrong = f"{pair('wrong_rows', 'd')} of {line['rows']} rows" if "rows" in line else ""
    near = "" if "snr" not in line else f"{line['snr']:.0f}"
    cells = [line["family"], f"`{line['method']}`", differing, wrong, near]
    cells += [pair("snr_to_float64", ".1f"), pair("ms", ".1f")]
    cells.append(_times(line["ms"]))
    if "whole" in line:
        theirs, ours = line["whole"]["ms"]
        cells.append(f"{theirs:.0f} / {ours:.0f}, {_times(line['whole']['ms'])}")
    return "| " + " | ".join([*cells, "", ""][:9]) + " |"


def _times(pair: list[float]) -> str:
    return f"{pair[0] / pair[1]:.2f}"


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", help="families whose names begin with this")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each takes")
    parser.add_argument("--small", action="store_true", help="the sizes that tests use")
    parser.add_argument("--out", type=made_folder, help="folder for families-cpu.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    packages = sorted({family.package for family in FAMILIES})
    results: dict[str, Any] = {"about": about(1, packages), "lines": []}
    print(f"| {COLUMNS} |\n|{'---|' * (COLUMNS.count('|') + 1)}")
    for family in FAMILIES:
        if options.only and not family.name.startswith(options.only):
            continue
        try:
            lines = lines_of(family, options.rounds, options.small)
            if family.name in WHOLE:
                lines[0]["whole"] = whole_of(family.name, options.rounds, options.small)
        except ModuleNotFoundError as error:
            lines = [{"family": family.name, "reason": f"missing: {error}"}]
        for line in lines:
            print(row_of(line), flush=True)
        results["lines"] += lines
    print(json.dumps(results["about"]))
    if options.out:
        (options.out / "families-cpu.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
