"""Small models as transformers leaves them on disk."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import MODELS


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """By name: a small model with random weights, and its folder, as transformers leaves it."""

    @functools.cache
    def original(name: str) -> tuple[Any, Path]:
        torch.manual_seed(0)
        model: Any = MODELS[name].make(True)
        folder = tmp_path_factory.mktemp("saved")
        model.save_pretrained(folder)
        return model, folder

    return original


@pytest.fixture
def model_of(originals: Callable[[str], tuple[Any, Path]], tmp_path: Path) -> Callable[[str], Any]:
    """By name: such a model, which no test changes; its files are copied to `tmp_path`."""

    def copied(name: str) -> Any:
        model, folder = originals(name)
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        return model

    return copied
