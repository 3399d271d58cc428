"""The tables of tile sizes, as data."""

import collections

import pytest
from support.tiles import assert_sums_alike

from muomni_fast.kernels import launch, tables

KEYS = {
    "encode": ("dim",),
    "decode": ("dim",),
    "conv": ("bytes", "columns"),
    "conv, small grid": ("bytes", "columns"),
    "weight_grad": ("bytes",),
    "strip": ("bytes", "channels"),
}


@pytest.mark.parametrize("architecture", tables.ARCHITECTURES)
def test_each_key_has_at_most_one_row_in_use(architecture):
    found = tables.read(tables.FOLDER / f"{architecture}.json")
    assert found.keys() == KEYS.keys()
    for kernel, rows in found.items():
        key = lambda row, names=KEYS[kernel]: tuple(row[name] for name in names)
        used = collections.Counter(key(row) for row in rows if row["use"])
        assert set(used.values()) <= {1}
        if kernel in ("encode", "decode", "conv", "weight_grad"):
            assert used.keys() == {key(row) for row in rows}
        settings = [{n: v for n, v in row.items() if n not in ("use", "ms")} for row in rows]
        assert all(settings.count(row) == 1 for row in settings), kernel


@pytest.mark.parametrize("architecture", tables.ARCHITECTURES)
def test_no_program_has_more_registers_than_a_multiprocessor(architecture):
    """Threads may have MAX_REGISTERS each; a launch of more than 65,536 in all fails."""
    for rows in tables.read(tables.FOLDER / f"{architecture}.json").values():
        assert all(32 * row["num_warps"] * launch.MAX_REGISTERS <= 65536 for row in rows)


@pytest.mark.parametrize("architecture", tables.ARCHITECTURES)
def test_results_do_not_depend_on_which_tile_runs(architecture):
    assert_sums_alike(tables.read(tables.FOLDER / f"{architecture}.json"))


def test_writing_what_was_read_changes_nothing(tmp_path):
    for architecture in tables.ARCHITECTURES:
        path = tables.FOLDER / f"{architecture}.json"
        tables.write(tables.read(path), tmp_path / "table.json")
        assert (tmp_path / "table.json").read_text() == path.read_text()
