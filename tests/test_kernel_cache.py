"""Where Triton keeps compiled kernels, and who else can write there."""

import os
import stat
import sys
import types
from collections.abc import Container
from pathlib import Path

import pytest

from muomni_fast import kernel_cache
from muomni_fast.kernel_cache import cache_folder, hazard

pytestmark = pytest.mark.skipif(os.name != "posix", reason="others are told apart as POSIX does")


def pretend(
    monkeypatch: pytest.MonkeyPatch, places: Container[Path], owner: int, mode: int | None = None
) -> None:
    """Let these folders look as if they belonged to somebody, and had a mode."""
    real = Path.stat

    def pretended(path: Path) -> os.stat_result:
        found = list(real(path))
        if path in places:
            found[stat.ST_UID] = owner
            found[stat.ST_MODE] = found[stat.ST_MODE] if mode is None else stat.S_IFDIR | mode
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", pretended)


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which only this user writes, wherever tests keep theirs."""
    tmp_path.chmod(0o700)
    pretend(monkeypatch, tmp_path.parents, 0, 0o755)
    return tmp_path


def made(folder: Path, mode: int) -> Path:
    folder.mkdir()
    folder.chmod(mode)  # whatever the umask
    return folder


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755])
def test_a_folder_of_ones_own_is_safe(private, mode):
    folder = made(private / "cache", mode)
    assert hazard(folder) is None
    assert hazard(folder / "not there yet" / "cache") is None


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_folder_that_others_write_to(private, mode):
    folder = made(private / "cache", mode)
    assert hazard(folder) == f"others can write to {folder} (mode {mode:04o})"
    (private / "link").symlink_to(folder)
    assert hazard(private / "link") == hazard(folder)


def test_a_folder_of_somebody_else(private, monkeypatch):
    folder, stranger = made(private / "cache", 0o700), os.getuid() + 1
    pretend(monkeypatch, [folder], stranger)
    assert hazard(folder) == f"{folder} belongs to another user ({stranger})"
    above = f"{folder}, which it is in, belongs to another user ({stranger})"
    assert hazard(folder / "not there yet") == above


def test_a_folder_that_others_can_replace(private):
    shared = made(private / "shared", 0o777)
    folder = made(shared / "cache", 0o700)
    said = f"others can write to {shared}, which it is in (mode 0777)"
    assert hazard(folder) == hazard(folder / "deeper" / "cache") == said
    shared.chmod(0o1777)  # as /tmp: what is there stays, but anybody can be the first to make it
    assert hazard(folder) is None
    assert hazard(shared / "new") == said.replace("0777", "1777")


def test_a_folder_that_cannot_be_looked_at(private):
    (private / "file").touch()
    said = hazard(private / "file" / "cache")
    assert said == f"{private / 'file' / 'cache'} cannot be looked at: Not a directory"


def test_the_folder_is_tritons_own(monkeypatch):
    """The same whether triton was imported or not."""
    triton = pytest.importorskip("triton")
    for variables in (
        {},
        {"TRITON_HOME": "/srv/home"},
        {"TRITON_CACHE_DIR": "/srv/cache", "TRITON_HOME": "/srv/home"},
    ):
        for name in ("TRITON_CACHE_DIR", "TRITON_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        imported = cache_folder()
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "triton.knobs")
            assert cache_folder() == imported == Path(triton.knobs.cache.dir)
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = "/srv/set"
        assert cache_folder() == Path("/srv/set")


def test_nothing_is_checked_where_there_are_no_such_permissions(private, monkeypatch):
    folder = made(private / "cache", 0o777)
    monkeypatch.setattr(kernel_cache, "os", types.SimpleNamespace(name="nt"))
    assert hazard(folder) is None
