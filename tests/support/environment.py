"""Where tests run, and the marks of those that run kernels.

Without a GPU kernels run in Triton's interpreter, which must be decided before anything imports
triton: conftest.py imports this first.
"""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.pop("MUOMNI_FAST_BACKEND", None)

from muomni_fast.backend import interpreter_obstacle

ROOT = Path(__file__).resolve().parents[2]
SPEECH = ROOT / "reference" / "speech"
# Where tests that run on either put their tensors.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# Marks of tests that run kernels, on the GPU where there is one, and of those that watch them run.
INTERPRETERS_NUMPY = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
ON_KERNELS = [pytest.mark.long, pytest.mark.usefixtures("kernel_device"), INTERPRETERS_NUMPY]
if DEVICE.type == "cuda":
    ON_KERNELS.append(pytest.mark.gpu)
ON_INTERPRETER = [
    pytest.mark.long,
    pytest.mark.skipif(DEVICE.type == "cuda", reason="watches the interpreter"),
    INTERPRETERS_NUMPY,
]
# Versions of Triton and numpy that do not go together.
NO_INTERPRETER = interpreter_obstacle() if DEVICE.type == "cpu" else None
if NO_INTERPRETER is not None:
    for marks in (ON_KERNELS, ON_INTERPRETER):
        marks.append(pytest.mark.skip(reason=NO_INTERPRETER))
