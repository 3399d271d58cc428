"""The Talker: what its logits depend on, and on what not."""

import copy
import io
import pickle

import pytest
import torch
from support.talkers import SENTENCES, VOICES, batch, tiny

import muomni_fast
from muomni_fast.reference import RVQ, Talker
from muomni_fast.reference.rvq.digest import quantizer_digest
from muomni_fast.reference.talker.checks import require_talker
from muomni_fast.reference.talker.delay import NO_TARGET, delayed, n_steps, undelayed
from muomni_fast.reference.talker.text import text_ids

BEGIN, PAD, END = 16, 17, 16


def test_the_pattern_of_its_page():
    codes = torch.tensor([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]])
    inputs, targets = delayed(codes, torch.tensor([3]), 16)
    no = NO_TARGET
    assert targets[0].T.tolist() == [[1, 4, 7, END, no], [no, 2, 5, 8, no], [no, no, 3, 6, 9]]
    assert inputs[0].T.tolist() == [
        [BEGIN, 1, 4, 7, PAD],
        [BEGIN, PAD, 2, 5, 8],
        [BEGIN, PAD, PAD, 3, 6],
    ]
    assert torch.equal(undelayed(targets, 3), codes)


@pytest.mark.parametrize("n_codebooks", [1, 2, 8])
def test_what_is_read_is_what_was_to_be_predicted_a_step_before(n_codebooks):
    """Targets that are shifted twice would be predicted from codes two steps back."""
    codes = torch.randint(16, (3, 7, n_codebooks))
    lengths = torch.tensor([7, 3, 0])
    inputs, targets = delayed(codes, lengths, 16)
    assert inputs.shape == (3, n_steps(7, n_codebooks), n_codebooks)
    assert (inputs[:, 0] == BEGIN).all()
    is_code = (targets != NO_TARGET) & (targets != END)
    assert torch.equal(inputs[:, 1:][is_code[:, :-1]], targets[:, :-1][is_code[:, :-1]])
    assert (inputs[:, 1:][~is_code[:, :-1]] == PAD).all()
    assert is_code.sum((1, 2)).tolist() == [7 * n_codebooks, 3 * n_codebooks, 0]
    ends = (targets[..., 0] == END).nonzero().tolist()
    assert ends == [[0, 7], [1, 3], [2, 0]]  # one each, in the first codebook only


@pytest.mark.parametrize("n_codebooks", [1, 3])
def test_logits_depend_on_codes_before_and_on_none_after(n_codebooks, monkeypatch):
    """By gradient, of the sum of a step's logits in what is read at each step."""
    talker = tiny(n_codebooks)
    read = []

    def embed(codes):
        read.append(Talker.embed_codes(talker, codes).detach().requires_grad_())
        return read[-1]

    monkeypatch.setattr(talker, "embed_codes", embed)
    out = talker(*batch(talker))
    finite = out.logits.masked_fill(out.logits.isinf(), 0)
    for step in range(finite.shape[1]):
        (gradient,) = torch.autograd.grad(finite[:, step].pow(2).sum(), read[0], retain_graph=True)
        reached = gradient.abs().amax((0, 2)) > 0
        assert reached.tolist() == [other <= step for other in range(finite.shape[1])]


def test_text_and_speaker_reach_every_logit():
    talker = tiny()
    text, *rest, speakers = batch(talker)
    before = talker(text, *rest, speakers).logits[:, :, 0]
    other = text.clone()
    other[:, 0] = ord("Z")
    assert (talker(other, *rest, speakers).logits[:, :, 0] != before).any(-1).all()
    assert (talker(text, *rest, (speakers + 1) % 3).logits[:, :, 0] != before).any(-1).all()
    none = talker(text, *rest, torch.zeros_like(speakers)).logits[:, :, 0]
    assert torch.equal(talker(text, *rest).logits[:, :, 0], none)


def test_swapped_codes_of_a_frame_change_logits():
    """With one table for all codebooks (a, b) and (b, a) would be the same sum."""
    talker = tiny(2)
    a, b = torch.tensor([3, 5]), torch.tensor([5, 3])
    assert not torch.allclose(talker.embed_codes(a), talker.embed_codes(b), atol=0.1)
    text, lengths, codes, *rest = batch(talker)
    codes[..., 0], codes[..., 1] = 3, 5
    there = talker(text, lengths, codes, *rest).logits
    here = talker(text, lengths, codes.flip(-1), *rest).logits
    assert not torch.allclose(there[0, 3:, 0], here[0, 3:, 0], atol=0.1)


def test_only_the_first_codebook_has_an_end_of_speech():
    talker = tiny()
    logits = talker(*batch(talker)).logits
    assert logits[:, :, 0].isfinite().all()
    assert (logits[:, :, 1:, -1] == -torch.inf).all() and logits[..., :-1].isfinite().all()


def test_padding_on_the_right_changes_nothing():
    """Items alone equal items in a batch, whatever stands in the padding."""
    talker = tiny()
    text, text_lengths, codes, lengths, speakers = batch(talker)
    together = talker(text, text_lengths, codes, lengths, speakers)
    other = codes.masked_fill(torch.arange(9)[:, None] >= lengths[:, None, None], -7)
    assert torch.equal(talker(text, text_lengths, other, lengths, speakers).logits, together.logits)
    for i, (n, s) in enumerate(zip(text_lengths.tolist(), lengths.tolist(), strict=True)):
        one = slice(i, i + 1)
        alone = talker(
            text[one, :n], text_lengths[one], codes[one, :s], lengths[one], speakers[one]
        )
        steps = n_steps(s, 3)
        torch.testing.assert_close(together.logits[one, :steps], alone.logits, rtol=0, atol=1e-5)
        assert torch.equal(together.targets[one, :steps], alone.targets)
        assert (together.targets[one, steps:] == NO_TARGET).all()


@pytest.mark.parametrize("n_codebooks", [1, 3])
def test_cached_steps_equal_the_whole(n_codebooks):
    """Logits of unequally long items, step by step, within 1e-5 of all at once."""
    talker = tiny(n_codebooks)
    text, text_lengths, codes, lengths, speakers = batch(talker)
    with torch.no_grad():
        whole = talker(text, text_lengths, codes, lengths, speakers).logits
        inputs, _ = delayed(codes, lengths, 16)
        cache = talker.prefill(text, text_lengths, speakers, inputs.shape[1])
        steps = [talker.step(row, cache) for row in inputs.unbind(1)]
    for i, length in enumerate(lengths.tolist()):
        own = n_steps(length, n_codebooks)
        here = torch.stack(steps, 1)[i, :own]
        torch.testing.assert_close(here, whole[i, :own], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [Talker, muomni_fast.Talker], ids=["reference", "fast"])
def test_a_prefix_may_be_padded_where_one_item_is_alone(kind):
    """Steps go over what was read before, and not over the padding."""
    talker = kind(**tiny().config).eval()
    talker.load_state_dict(tiny().state_dict())
    text, text_lengths, codes, _, speakers = (tensor[:1] for tensor in batch(talker))
    assert text.shape[1] > text_lengths[0]
    with torch.no_grad():
        said = []
        for ids in (text, text[:, : int(text_lengths)]):
            cache = talker.prefill(ids, text_lengths, speakers, 3)
            said.append(torch.stack([talker.step(codes[:, i], cache) for i in range(3)]))
    torch.testing.assert_close(said[0], said[1], rtol=0, atol=1e-5)


def test_bfloat16():
    """Within twice what its eight bits make of each number."""
    talker = tiny()
    inputs = batch(talker)
    exact = talker(*inputs).logits
    half = copy.deepcopy(talker).bfloat16()(*inputs).logits
    with torch.autocast("cpu", torch.bfloat16):
        cast = talker(*inputs).logits
    finite = exact.isfinite()
    for logits in (half, cast):
        assert logits.dtype == torch.bfloat16
        error = (logits.float() - exact)[finite]
        assert error.square().mean().sqrt() < 2**-5 * exact[finite].square().mean().sqrt()


def test_copies_are_the_same():
    talker = tiny()
    inputs = batch(talker)
    there = talker(*inputs).logits
    saved = io.BytesIO()
    torch.save(talker.state_dict(), saved)
    saved.seek(0)
    fresh = Talker(**talker.config)
    fresh.load_state_dict(torch.load(saved, weights_only=True))
    for copied in (copy.deepcopy(talker), pickle.loads(pickle.dumps(talker)), fresh):
        assert torch.equal(copied(*inputs).logits, there)
    assert len(list(talker.buffers())) == 0


@pytest.mark.parametrize(
    ("config", "count"),
    [({}, 0.95e6), ({"dim": 256, "n_layers": 6, "n_heads": 8}, 5.3e6)],
    ids=["quick", "muomni"],
)
def test_sizes(config, count):
    assert sum(p.numel() for p in Talker(**config).parameters()) == pytest.approx(count, rel=0.01)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"n_codebooks": 0}, ValueError, "n_codebooks: expected an integer from 1 to 256, got 0"),
        ({"dim": 30}, ValueError, "dim: expected a multiple of 2 \\* n_heads = 8, got 30"),
        ({"speakers": "ada"}, TypeError, "speakers: expected a list or tuple of names, got 'ada'"),
        ({"speakers": ["a", "a"]}, ValueError, "speakers: expected different names"),
        ({"speakers": [""]}, ValueError, 'speakers: expected names, got ""'),
        ({"quantizer": "abc"}, ValueError, "quantizer: expected a sha256 in hexadecimal digits"),
        ({"dim": 16384, "n_layers": 256}, ValueError, "Talker: expected at most 1,073,741,824"),
    ],
)
def test_settings_that_are_refused(config, error, message):
    with torch.device("meta"), pytest.raises(error, match=message):
        Talker(**config)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({0: torch.zeros(3)}, ValueError, "text: expected \\(B, N\\), got \\(3,\\)"),
        ({1: torch.tensor([9, 99, 1])}, ValueError, "text_lengths: expected 1 to 23, got 1 to 99"),
        ({2: torch.zeros(3, 9, 2)}, ValueError, "codes: expected \\(3, S, 3\\), got \\(3, 9, 2\\)"),
        ({2: torch.full((3, 9, 3), 16)}, IndexError, "codes: expected 0 to 15, got 16"),
        ({2: torch.full((3, 9, 3), -1)}, IndexError, "codes: expected 0 to 15, got -1"),
        ({3: torch.tensor([5, 10, 1])}, ValueError, "lengths: expected 0 to 9, got 1 to 10"),
        ({3: torch.tensor([5])}, ValueError, "lengths: expected \\(3,\\), got \\(1,\\)"),
        ({4: torch.tensor([0, 1, 3])}, IndexError, "speakers: expected 0 to 2, got 0 to 3"),
        ({4: torch.tensor([0, -1, 2])}, IndexError, "speakers: expected 0 to 2, got -1 to 2"),
        ({0: torch.full((3, 23), 257)}, IndexError, "text: expected 0 to 256, got 257 to 257"),
        ({0: torch.full((3, 23), -1)}, IndexError, "text: expected 0 to 256, got -1 to -1"),
        ({3: torch.zeros(3, device="meta")}, ValueError, "one device: .*lengths is on meta"),
    ],
)
def test_batches_that_are_refused(change, error, message):
    talker = tiny()
    inputs = [change.get(i, value) for i, value in enumerate(batch(talker))]
    with pytest.raises(error, match=message):
        talker(*(value.long() for value in inputs))
    with pytest.raises(TypeError, match="text: expected an integer tensor, got torch.float32"):
        talker(inputs[0].float(), *inputs[1:])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32], ids=str)
def test_integers_of_any_width(dtype):
    """Lengths and sizes beyond what a narrow one can count, too."""
    talker = tiny(codebook_size=1024)
    text, text_lengths = text_ids([b"a" * 126, b"b" * (254 if dtype == torch.uint8 else 3)])
    codes, lengths = torch.arange(12).view(2, 2, 3), torch.tensor([2, 1])
    inputs = [text, text_lengths, codes, lengths, torch.tensor([1, 0])]
    whole = talker(*inputs).logits
    narrow = [value.to(dtype) for value in inputs[1:]]
    text = text.to(dtype) if dtype in (torch.int16, torch.int32) else text  # 256 ends a text
    assert torch.equal(talker(text, *narrow).logits, whole)


def test_a_digest_is_of_weights_and_settings():
    rvq = RVQ(n_codebooks=3, codebook_size=16)
    digest = quantizer_digest(rvq, 5)
    assert digest == quantizer_digest(copy.deepcopy(rvq), 5) and len(digest) == 64
    others = {digest, quantizer_digest(rvq, 1), quantizer_digest(rvq, 5, "stack")}
    with torch.no_grad():
        rvq.codebooks[1].weight[3, 4] += 1e-3
    others.add(quantizer_digest(rvq, 5))
    assert len(others) == 4
    require_talker(tiny(), rvq, 1, "mean")  # which knows of none
    talker = Talker(3, 16, quantizer=quantizer_digest(rvq, 5))
    require_talker(talker, rvq, 5, "mean")
    with pytest.raises(ValueError, match="talker: expected the quantizer it was trained with"):
        require_talker(talker, rvq, 5, "stack")
    with pytest.raises(ValueError, match="talker: has n_codebooks = 2, but the quantizer has 3"):
        require_talker(Talker(2, 16), rvq, 5, "mean")


def test_speakers_by_name():
    talker = tiny()
    assert talker.speaker_ids(VOICES, len(SENTENCES)).tolist() == [1, 2, 0]
    assert talker.speaker_ids("ben", 2).tolist() == [2, 2]
