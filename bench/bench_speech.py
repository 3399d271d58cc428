"""Encode, decode, generate and train: the reference against the fast modules at the named shapes.

`pytest bench --benchmark-only`.
"""

import math
import time
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

import muomni_fast
from muomni_fast import reference
from muomni_fast.reference.training.presets import presets
from muomni_fast.reference.training.stage import StepResult
from muomni_fast.reference.training.vocoder_stage import VocoderStage

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONFIG = presets()["muomni"]  # the default shapes
# name -> batch, mel frames (62.5 a second)
SHAPES = {"1 frame": (1, 1), "1 s": (1, 63), "10 s": (1, 625), "16 x 10 s": (16, 625)}
BACKENDS = {"reference": reference, "fast": muomni_fast}
QUANTIZERS = {
    "reference": lambda: reference.RVQ().to(DEVICE).eval(),
    "fast": lambda: muomni_fast.RVQ().to(DEVICE).eval(),
    "prepared": lambda: muomni_fast.RVQ().to(DEVICE).eval().prepare(),
}
GENERATORS = {
    "reference": lambda: reference.HiFiGANVocoder().to(DEVICE).eval(),
    "fast": lambda: muomni_fast.HiFiGANVocoder().to(DEVICE).eval(),
    "prepared": lambda: muomni_fast.HiFiGANVocoder().to(DEVICE).eval().prepare(),
}
BUDGET = 3.0  # seconds of measuring per benchmark; what takes longer is measured once
MAX_ROUNDS = 500

every_backend = pytest.mark.parametrize("backend", BACKENDS.values(), ids=list(BACKENDS))
every_quantizer = pytest.mark.parametrize("make", QUANTIZERS.values(), ids=list(QUANTIZERS))
every_generator = pytest.mark.parametrize("make", GENERATORS.values(), ids=list(GENERATORS))
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))


@pytest.fixture
def measure(benchmark) -> Callable[[Callable[[], object]], None]:
    """Time a function after a warm-up that also tells how many rounds fit the budget."""

    def run(function: Callable[[], object]) -> None:
        def synchronised() -> None:
            function()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()

        start = time.perf_counter()
        synchronised()
        rounds = math.ceil(BUDGET / (time.perf_counter() - start))
        benchmark.pedantic(synchronised, rounds=min(rounds, MAX_ROUNDS))

    return run


def mel_frames(shape: tuple[int, int]) -> torch.Tensor:
    """Log-mel-like frames (B, T, n_mels)."""
    return torch.randn(*shape, 128, device=DEVICE) * 2 - 6


@every_quantizer
@every_shape
@pytest.mark.benchmark(group="encode")
def test_encode(measure, make: Callable[[], reference.RVQ], shape: tuple[int, int]) -> None:
    rvq, mel = make(), mel_frames(shape)
    with torch.no_grad():
        measure(lambda: rvq.encode(mel))


@every_quantizer
@every_shape
@pytest.mark.benchmark(group="decode")
def test_decode(measure, make: Callable[[], reference.RVQ], shape: tuple[int, int]) -> None:
    rvq, codes = make(), torch.randint(128, (*shape, 2), device=DEVICE)
    with torch.no_grad():
        measure(lambda: rvq.decode(codes))


@every_generator
@every_shape
@pytest.mark.benchmark(group="generator forward")
def test_generator(
    measure, make: Callable[[], reference.HiFiGANVocoder], shape: tuple[int, int]
) -> None:
    generator = make()
    mel = mel_frames(shape).transpose(1, 2).contiguous()
    with torch.inference_mode():
        measure(lambda: generator(mel))


@every_backend
@pytest.mark.benchmark(group="training step, 16 x 8,192 samples")
def test_training_step(measure, backend: ModuleType) -> None:
    """Both passes of the adversarial step, full-size discriminators, both optimisers."""
    stage = VocoderStage(CONFIG, backend, DEVICE)
    stage.begin()
    audio = 0.1 * torch.randn(16, 8192, device=DEVICE)
    mel = mel_frames((16, 32)).transpose(1, 2).contiguous()

    def step() -> None:
        batch = {"audio": audio, "mel": mel}
        results: dict[str, StepResult] = {}
        for name in stage.passes(step=0):
            stage.optimisers[name].zero_grad(set_to_none=True)
            results[name] = stage.loss(name, batch, results)
            results[name].loss.backward()
            stage.optimisers[name].step()

    measure(step)
