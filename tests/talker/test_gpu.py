"""The Talker where only a GPU can tell: steps as a CUDA graph."""

import pytest
import torch
from support.talkers import SENTENCES, VOICES, tiny

import muomni_fast
from muomni_fast.talker import steps

pytestmark = pytest.mark.gpu


@pytest.fixture
def talker() -> muomni_fast.Talker:
    model = muomni_fast.Talker(**tiny().config).eval()
    model.load_state_dict(tiny().state_dict())
    return model.cuda()


def test_a_graph_says_what_single_steps_say(talker, monkeypatch):
    """Greedy and drawn, of a batch and alone; the first from torch's own steps too."""
    assert type(talker.steps()) is steps.KernelSteps
    for texts, voices in ((SENTENCES, VOICES), (SENTENCES[0], VOICES[0])):
        for options in ({}, {"temperature": 1.0, "top_k": 5, "seed": 3}):
            said = talker.generate(texts, voices, max_frames=30, **options)
            with monkeypatch.context() as patch:
                patch.setattr(steps, "FIRST_STEPS", 1 << 20)
                alone = talker.generate(texts, voices, max_frames=30, **options)
                patch.setenv("MUOMNI_FAST_BACKEND", "torch")
                plain = talker.generate(texts, voices, max_frames=30, **options)
            assert torch.equal(said.codes, alone.codes)
            assert torch.equal(said.lengths, alone.lengths)
            if not options:
                assert torch.equal(said.codes, plain.codes)


def test_steps_are_recorded_once_a_text(talker, monkeypatch):
    seen, record = [], steps.recorded
    monkeypatch.setattr(steps, "recorded", lambda *args: seen.append(1) or record(*args))
    rows = [row for row, _ in talker.steps(max_frames=30).rows([b"Two."], [0])]
    assert len(rows) == talker.steps(max_frames=30).most and len(seen) == 1
    assert len({row.data_ptr() for row in rows}) == len(rows)
