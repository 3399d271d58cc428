"""A rehearsal of the table of families, at tiny sizes: `python bench/families.py`."""

import dataclasses
import json

import families
import pytest
from support.families import PACKAGES
from whole_models import WHOLE

pytest.importorskip("transformers")
pytest.importorskip("vector_quantize_pytorch")
pytestmark = [pytest.mark.xdist_group("families"), pytest.mark.long]


def test_every_family_has_a_line_and_its_whole_model_a_time(tmp_path, capsys):
    families.main(["--small", "--rounds", "1", "--out", str(tmp_path / "new")])
    lines = json.loads((tmp_path / "new" / "families-cpu.json").read_text())["lines"]
    assert {line["family"] for line in lines} == {family.name for family in PACKAGES}
    wholes = {line["family"]: line["whole"] for line in lines if "whole" in line}
    assert wholes.keys() == WHOLE.keys()
    for whole in wholes.values():
        assert whole["snr"] >= 100 and min(whole["ms"]) > 0 and whole["what"]
    for line in lines:
        assert line.get("codes_differing", 0) == 0 and line.get("snr", 200) >= 105
    table = [row for row in capsys.readouterr().out.splitlines() if row.startswith("|")]
    assert len(table) == len(lines) + 2
    assert {row.count("|") for row in table} == {families.COLUMNS.count("|") + 2}


def test_a_family_whose_library_is_missing_is_named(monkeypatch, capsys):
    def missing(small):
        raise ModuleNotFoundError("No module named 'transformers'")

    mimi = next(family for family in PACKAGES if family.name == "Mimi")
    monkeypatch.setattr(families, "FAMILIES", [dataclasses.replace(mimi, make=missing)])
    families.main(["--small"])
    assert "| Mimi | missing: No module named 'transformers' |" in capsys.readouterr().out
