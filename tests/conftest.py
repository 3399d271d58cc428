"""What all tests share."""

import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.environment import DEVICE, NO_INTERPRETER  # before anything imports triton
from support.interpreter import probe, round_like_tensor_cores  # noqa: F401  # a fixture
from support.quick_interpreter import quicken

from muomni_fast.backend import BackendUnavailableError
from muomni_fast.reference import RVQ, MelConfig
from muomni_fast.reference.checkpoint import save_model

# Fills fresh memory with NaN (integers: the largest), so that an output nobody wrote shows.
torch.use_deterministic_algorithms(True)

if DEVICE.type == "cpu" and importlib.util.find_spec("triton"):
    quicken()


def pytest_configure(config: pytest.Config) -> None:
    """A compiled call leaves hundreds of DEBUG records, which a failure would show.

    Not by pytest's option in pyproject.toml: it sets the level anew for every test, which goes
    through all loggers that there are.
    """
    if config.getoption("log_level") is None and config.getoption("log_cli_level") is None:
        logging.getLogger().setLevel(logging.INFO)
        logging.disable(logging.DEBUG)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The document of a quantizer's checkpoint."""
    pytest.importorskip("safetensors")
    path = tmp_path / "rvq.json"
    save_model(path, "rvq", RVQ(), MelConfig(), step=7)
    return path


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip)
        # Tests that share what their module makes once run in one process.
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        if any(definitions[-1].scope == "module" for definitions in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    # The longest first, so that no process ends long after the others.
    items.sort(key=lambda item: [mark not in item.keywords for mark in ("slow", "long")])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Skip what asks for interpreted kernels where the library says that they cannot run."""
    try:
        return (yield)
    except BackendUnavailableError as error:
        if NO_INTERPRETER is not None and NO_INTERPRETER in str(error):
            pytest.skip(NO_INTERPRETER)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Leave torch's own frames out of a failure, the last one excepted: a compiled call or a
    backward has dozens. `--full-trace` shows them."""
    report = yield
    # A worker process cannot send a file's name that is no UTF-8.
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    if not item.config.getoption("fulltrace"):
        for traceback, *_ in getattr(report.longrepr, "chain", ()):
            *before, last = traceback.reprentries
            traceback.reprentries = [e for e in before if not _is_torchs(e)] + [last]
    return report


def _is_torchs(entry: Any) -> bool:
    place = getattr(entry, "reprfileloc", None)
    return place is not None and "site-packages/torch/" in place.path


@pytest.fixture
def interpreter() -> None:
    """For tests that would fail otherwise than by asking for what cannot run."""
    if NO_INTERPRETER is not None:
        pytest.skip(NO_INTERPRETER)


def folder_from(variable: str) -> Path:
    """A folder named by an environment variable; skips the test where it is unset."""
    if variable not in os.environ:
        pytest.skip(f"{variable} is not set")
    return Path(os.environ[variable])


@pytest.fixture(scope="session")
def recordings() -> Path:
    """Real speech: the folder MUOMNI_SPEECH_DIR, beside its manifest.csv."""
    return folder_from("MUOMNI_SPEECH_DIR")


@pytest.fixture(scope="session")
def weights() -> Path:
    """Published weights: the folder MUOMNI_WEIGHTS_DIR."""
    return folder_from("MUOMNI_WEIGHTS_DIR")


@pytest.fixture(autouse=True)
def seeded() -> None:
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:  # which would keep a traceback of every call, for a GPU that may yet come
        torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True)
def compiled_anew() -> Iterator[None]:
    """The limit of recompilations is for each function, not for each test of it."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


@pytest.fixture
def full_float32() -> Iterator[None]:
    """Convolutions of float32 are not rounded to TF32; said so that either way of saying it works
    before and after."""
    setting = torch.backends.cudnn.conv
    before, setting.fp32_precision = setting.fp32_precision, "ieee"
    yield
    setting.fp32_precision = before


@pytest.fixture
def kernel_device(full_float32: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors are created where kernels run; interpreted products round as tensor cores do."""
    if DEVICE.type == "cpu":
        round_like_tensor_cores(monkeypatch)
    with torch.device(DEVICE):
        yield
