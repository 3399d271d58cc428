"""What must neither wait for a GPU nor allocate while a CUDA graph is captured.

Without a GPU: tensors are fake ones on CUDA, and torch is made to say that a capture goes on. That
captured calls work is in rvq/test_gpu.py and vocoder/test_gpu.py.
"""

from collections.abc import Iterator

import pytest
import torch
from support.small_vocoders import TINY
from torch import nn
from torch._subclasses import FakeTensorMode

import muomni_fast
from muomni_fast import counters, functional, reference
from muomni_fast.reference.audio.mel import window_like
from muomni_fast.reference.checks import require_lengths
from muomni_fast.reference.rvq.search import nearest_code

CUDA = torch.device("cuda", 0)


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(counters, "known", {})
    with FakeTensorMode():
        yield


def on_cuda(module: type[nn.Module], **config) -> nn.Module:
    """Fake parameters cannot be moved, nor made there without CUDA."""
    made = module(**config)
    for part in made.modules():
        for name, parameter in [*part.named_parameters(recurse=False)]:
            setattr(part, name, nn.Parameter(torch.empty_like(parameter, device=CUDA)))
    return made


@pytest.mark.parametrize("lengths", [[3, 2], torch.tensor([3, 2])], ids=["list", "tensor"])
def test_lengths_from_elsewhere_are_refused_in_a_capture(capturing, lengths):
    mel = torch.empty(2, 3, 4, device=CUDA)
    got = "a list" if isinstance(lengths, list) else "a tensor on cpu"
    message = rf"lengths: expected a tensor on cuda:0, got {got} \(a CUDA graph is being captured"
    with pytest.raises(RuntimeError, match=message):
        require_lengths(lengths, mel)
    for library in (reference, muomni_fast):
        with pytest.raises(RuntimeError, match=message):
            on_cuda(library.HiFiGANVocoder, **TINY)(mel, lengths)


def test_lengths_on_the_device_are_taken_in_a_capture(capturing):
    lengths = torch.empty(2, dtype=torch.int64, device=CUDA)
    assert require_lengths(lengths, torch.empty(2, 3, 4, device=CUDA)) is lengths


def test_what_waits_is_refused_by_name_in_a_capture(capturing):
    mel, codes = torch.empty(5, 8, device=CUDA), torch.zeros(5, 2, dtype=torch.int64, device=CUDA)
    books, config = torch.empty(2, 16, 8, device=CUDA), muomni_fast.MelConfig()
    models = [on_cuda(lib.HiFiGANVocoder, **TINY) for lib in (reference, muomni_fast)]
    talker = on_cuda(reference.Talker, dim=8, n_layers=1, n_heads=1)
    frames, lengths = torch.empty(2, 3, 4, device=CUDA), torch.zeros(2, device=CUDA).long()
    for name, call in (
        ("check_finite", lambda: functional.rvq_encode(mel, books, check_finite=True)),
        ("check_finite", lambda: reference.rvq_encode(mel, books, check_finite=True)),
        ("codes", lambda: reference.rvq_decode(codes, books)),
        ("encode", lambda: nearest_code(mel, torch.empty(16, 8, device=CUDA))),
        ("lengths", lambda: models[0](frames, lengths)),
        ("prepare", lambda: models[1].eval().prepare()),
        ("mel", lambda: window_like(config, books)),
        ("generate", lambda: talker.generate("Yes.")),
    ):
        with pytest.raises(RuntimeError, match=rf"^{name}: .*\(a CUDA graph is being captured\)$"):
            call()


def test_errors_are_not_read_in_a_capture(capturing):
    counters.known[CUDA] = ()
    with pytest.raises(RuntimeError, match=r"raise_if_errors: .* \(a CUDA graph is being captured"):
        muomni_fast.raise_if_errors()


def test_counters_are_not_made_in_a_capture(capturing):
    with pytest.raises(RuntimeError, match="counters: none are on cuda:0 yet.* move an RVQ there"):
        counters.counters(CUDA)
    assert not counters.known
    counters.begin_counting(CUDA)  # moving a module may be captured
    assert not counters.known


def test_counters_outlive_the_callers_modes(monkeypatch):
    """Neither inference tensors, whose zeroing would raise, nor fake ones."""
    for mode in (torch.inference_mode, FakeTensorMode, lambda: torch.device("meta")):
        monkeypatch.setattr(counters, "known", {})
        with mode():
            counters.counters(torch.device("cpu"))
        ((codes, frames),) = counters.known.values()
        for counter in (codes, frames):
            assert type(counter) is torch.Tensor and not counter.is_inference()
            assert counter.device.type == "cpu" and counter.tolist() == [0]
        frames += 3
        assert muomni_fast.raise_if_errors() == 3


def test_a_module_on_meta_leaves_no_counters(monkeypatch):
    monkeypatch.setattr(counters, "known", {})
    muomni_fast.RVQ().to("meta")
    assert muomni_fast.raise_if_errors() == 0 and not counters.known
