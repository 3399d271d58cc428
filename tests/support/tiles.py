"""What every table of tile sizes keeps to, shipped or just timed."""

from typing import Any


def assert_sums_alike(table: dict[str, list[dict[str, Any]]]) -> None:
    """What is summed at once is the same in tiles for many rows, for few, and in strips."""
    usual = {(r["bytes"], r["columns"]): r["block_k"] for r in table["conv"] if r["use"]}
    for row in table["conv, small grid"]:
        assert row["block_k"] == usual[row["bytes"], row["columns"]]
    for row in table["strip"]:
        assert row["block_k"] == usual[row["bytes"], max(16, row["channels"])]
