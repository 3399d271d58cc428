"""The drop-in Talker: the reference's numbers, with fewer operators."""

import copy

import pytest
import torch
from support.talkers import SENTENCES, VOICES, batch, learned, tiny
from torch.utils._python_dispatch import TorchDispatchMode

import muomni_fast
from muomni_fast.reference.talker.delay import delayed


def fast(talker: torch.nn.Module) -> muomni_fast.Talker:
    """A drop-in with the same weights."""
    made = muomni_fast.Talker(**talker.config).to(talker.norm.weight.dtype).eval()
    made.load_state_dict(talker.state_dict())
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n_codebooks", [1, 3])
def test_steps_equal_the_reference(n_codebooks, dtype):
    """Of unequally long items and of one alone, with gains that are not one; half precision takes
    the reference's own steps."""
    talker = tiny(n_codebooks).to(dtype)
    for name, weight in talker.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.3, 1)
    text, text_lengths, codes, lengths, speakers = batch(talker)
    inputs, _ = delayed(codes, lengths, 16)
    for items in (slice(None), slice(1, 2)):
        prefix = text[items, : int(text_lengths[items].max())], text_lengths[items], speakers[items]
        with torch.no_grad():
            caches = [model.prefill(*prefix, 12) for model in (talker, fast(talker))]
            for row in inputs[items].unbind(1):
                there, here = talker.step(row, caches[0]), fast(talker).step(row, caches[1])
                torch.testing.assert_close(here, there, rtol=0, atol=1e-5)


def test_it_says_what_the_reference_says():
    for talker in (learned()[0], tiny()):
        there = talker.generate(SENTENCES, VOICES, max_frames=12)
        here = fast(talker).generate(SENTENCES, VOICES, max_frames=12)
        assert torch.equal(here.codes, there.codes) and torch.equal(here.lengths, there.lengths)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_takes_the_references_own_steps(dtype):
    """Also where it begins between two steps."""
    talker = learned()[0]
    with torch.autocast("cpu", dtype):
        there = talker.generate(SENTENCES, VOICES, max_frames=12)
        here = fast(talker).generate(SENTENCES, VOICES, max_frames=12)
    assert torch.equal(here.codes, there.codes) and torch.equal(here.lengths, there.lengths)
    text, text_lengths, codes, _, speakers = batch(talker)
    with torch.no_grad():
        model = fast(talker)
        caches = [model.prefill(text, text_lengths, speakers, 2) for _ in range(2)]
        there = model.step(codes[:, 0], caches[0])
        with torch.autocast("cpu", dtype):
            here = model.step(codes[:, 0], caches[1])
    assert torch.equal(here, there)


def test_weights_changed_after_a_generation_are_used():
    model = fast(learned()[0])
    before = model.generate(SENTENCES, VOICES, max_frames=12).codes
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1)
    there = copy.deepcopy(model)
    there.__class__ = muomni_fast.reference.Talker
    here = model.generate(SENTENCES, VOICES, max_frames=12).codes
    assert torch.equal(here, there.generate(SENTENCES, VOICES, max_frames=12).codes)
    assert here.shape != before.shape or not torch.equal(here, before)


class Count(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_step_has_few_operators():
    """What a small model's step costs is to dispatch them: with a block more there are at most as
    many more as are counted here, of the reference and of the drop-in."""
    counts = []
    for make in (tiny, lambda **config: fast(tiny(**config))):
        for n_layers in (2, 3):
            model = make(n_layers=n_layers)
            text, text_lengths, *_ = batch(model)
            with torch.no_grad():
                cache = model.prefill(text[:1], text_lengths[:1], None, 4)
                with Count() as counted:
                    model.step(torch.full((1, 3), model.begin), cache)
            counts.append(counted.count)
    plain, one_more, packed, packed_one_more = counts
    assert one_more - plain <= 39 and plain <= 110, counts
    assert packed_one_more - packed <= 26 and packed < 0.75 * plain, counts
