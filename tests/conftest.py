"""What all tests share. Without a GPU, Triton kernels run in its interpreter, which must be decided
here, before anything imports triton."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.pop("MUOMNI_FAST_BACKEND", None)

# Fills fresh memory with NaN (integers: the largest), so that an output nobody wrote shows.
torch.use_deterministic_algorithms(True)

# Where tests that run on either put their tensors.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROOT = Path(__file__).resolve().parent.parent
SPEECH = ROOT / "reference" / "speech"
# Marks of tests that run kernels, on the GPU where there is one, and of those that watch them run.
INTERPRETERS_NUMPY = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
ON_KERNELS = [pytest.mark.usefixtures("kernel_device"), INTERPRETERS_NUMPY]
if DEVICE.type == "cuda":
    ON_KERNELS.append(pytest.mark.gpu)
ON_INTERPRETER = [
    pytest.mark.skipif(DEVICE.type == "cuda", reason="watches the interpreter"),
    INTERPRETERS_NUMPY,
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


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
    torch.manual_seed(0)


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
    from interpreter import round_like_tensor_cores

    if DEVICE.type == "cpu":
        round_like_tensor_cores(monkeypatch)
    with torch.device(DEVICE):
        yield
