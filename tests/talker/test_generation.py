"""Generation: what was learned comes back, and stops; what cannot be said is refused by name."""

import pytest
import torch
from support.talkers import SENTENCES, VOICES, learned, tiny

from muomni_fast.reference.talker.delay import n_steps
from muomni_fast.reference.talker.generation import NO_FRAME, Steps
from muomni_fast.reference.talker.text import END_OF_TEXT, pieces, text_ids


@pytest.mark.parametrize("n_codebooks", [1, 3])
def test_what_was_learned_comes_back_and_stops(n_codebooks):
    """Text decides what is said, and an end of speech how long: nothing else tells items apart."""
    talker, (_, _, codes, lengths, _) = learned(n_codebooks)
    said = talker.generate(SENTENCES, VOICES, max_frames=40)
    assert torch.equal(said.lengths, lengths)
    past = torch.arange(codes.shape[1])[:, None] >= lengths[:, None, None]
    assert torch.equal(said.codes, codes.masked_fill(past, NO_FRAME))


def test_a_batch_says_what_each_item_says_alone():
    for talker in (learned()[0], tiny()):  # the second never ends
        together = talker.generate(SENTENCES, VOICES, max_frames=12)
        for i, (text, voice) in enumerate(zip(SENTENCES, VOICES, strict=True)):
            alone = talker.generate(text, voice, max_frames=12)
            length = int(alone.lengths)
            assert length == together.lengths[i]
            assert torch.equal(alone.codes[0], together.codes[i, :length])


def test_drawing_is_by_seed_and_by_the_distribution():
    steps = Steps(tiny(1), temperature=0.5, seed=3)
    logits = torch.tensor([0.0, 1.0, -1.0, -torch.inf]).expand(20_000, 1, 4)
    drawn = torch.bincount(steps.draw(logits).flatten(), minlength=4) / 20_000
    expected = (logits[0, 0] / 0.5).softmax(-1)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0.02)
    top = Steps(tiny(1), temperature=0.5, top_k=2, seed=3).draw(logits)
    assert set(top.flatten().tolist()) == {0, 1}
    talker = tiny()
    said = [
        talker.generate(SENTENCES, temperature=1.0, seed=seed, max_frames=9).codes
        for seed in (0, 0, 1)
    ]
    assert torch.equal(said[0], said[1])
    assert said[0].shape != said[2].shape or not torch.equal(said[0], said[2])
    greedy = talker.generate(SENTENCES, max_frames=9).codes
    one = talker.generate(SENTENCES, temperature=1.0, top_k=1, max_frames=9).codes
    assert torch.equal(one, greedy)


def endless(n_codebooks=3):
    """A Talker that never ends."""
    talker = tiny(n_codebooks)
    talker.heads[0].weight.data[-1] = 0
    original = talker.logits

    def logits(x):
        out = original(x)
        out[..., -1] = -torch.inf
        return out

    talker.logits = logits
    return talker


@pytest.mark.parametrize("n_codebooks", [1, 3])
def test_without_an_end_there_is_a_warning_and_what_was_said_is_kept(n_codebooks, caplog):
    said = endless(n_codebooks).generate(SENTENCES[0], max_frames=7)
    assert said.codes.shape == (1, 7, n_codebooks) and said.lengths.tolist() == [7]
    assert said.codes.min() >= 0 and said.codes.max() < 16
    assert "no end of speech within 7 frames, and cut there: 'A dog barks.'" in caplog.text


def test_an_end_at_the_cap_is_no_cut(caplog):
    talker, (*_, lengths, _) = learned()
    assert talker.generate(SENTENCES, VOICES, max_frames=9).lengths.tolist() == lengths.tolist()
    assert not caplog.text


def test_the_delayed_codebooks_are_drained():
    talker, (_, _, _, lengths, _) = learned()
    rows = list(Steps(talker, max_frames=20).rows([b"Two."], [0]))
    ended = int(rows[-1][1])
    assert ended == int(lengths[2]) == 1
    grid = torch.stack([row for row, _ in rows], 1)[0]
    codes = grid < 16
    for q in range(3):
        assert codes[:, q].nonzero().flatten().tolist() == [q]
    assert n_steps(1, 3) == 3


def test_long_texts_are_split_between_sentences():
    long = 'One two. Three four! "Five?" Six\nseven eight nine.'
    assert pieces("text", long, 512) == [long.encode()]
    found = pieces("text", long, 22)
    assert all(len(piece) <= 22 for piece in found)
    assert b" ".join(found).split() == long.encode().split()
    assert found[0] == b"One two. Three four!"
    assert pieces("text", "日本。語。", 9) == ["日本。".encode(), "語。".encode()]
    talker = tiny(max_text=22)
    said = talker.generate([long, "Two."], max_frames=5)
    apart = talker.generate([piece.decode() for piece in found], max_frames=5)
    joined = [codes[:n] for codes, n in zip(apart.codes, apart.lengths.tolist(), strict=True)]
    assert torch.equal(said.codes[0, : said.lengths[0]], torch.cat(joined))
    assert said.lengths[1] == talker.generate("Two.", max_frames=5).lengths[0]


def test_ids_of_text():
    ids, lengths = text_ids(["é".encode(), b"a"])
    assert ids.tolist() == [[0xC3, 0xA9, END_OF_TEXT], [97, END_OF_TEXT, END_OF_TEXT]]
    assert lengths.tolist() == [3, 2]
    assert tiny().generate([]).codes.shape == (0, 0, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"texts": ""}, ValueError, "texts\\[0\\]: expected text, got nothing to say"),
        ({"texts": ["Two.", " \n"]}, ValueError, "texts\\[1\\]: expected text, got nothing"),
        ({"texts": "a" * 10_000}, ValueError, "sentences of at most 512 bytes, got one of 10,000"),
        ({"texts": "so \ud800"}, ValueError, "half of a surrogate pair, U\\+D800, at character 3"),
        ({"texts": b"Two."}, TypeError, "texts: expected a string, or a list of strings"),
        ({"texts": [7]}, TypeError, "texts\\[0\\]: expected a string, got 7"),
        ({"speakers": "eve"}, ValueError, "expected None or one of \\['ada', 'ben'\\], got 'eve'"),
        ({"speakers": ["ada", "ben"]}, ValueError, "expected one for each of 1 texts, got 2"),
        ({"speakers": [3]}, TypeError, "speakers: expected a string, got 3"),
        ({"temperature": -1.0}, ValueError, "temperature: expected at least 0, got -1.0"),
        ({"temperature": float("nan")}, ValueError, "temperature: expected a finite number"),
        ({"top_k": 0}, ValueError, "top_k: expected an integer of at least 1, got 0"),
        ({"seed": -1}, ValueError, "seed: expected an integer from 0"),
        ({"max_frames": 0}, ValueError, "max_frames: expected an integer from 1 to 65,536, got 0"),
    ],
)
def test_what_cannot_be_said(arguments, error, message):
    with pytest.raises(error, match=message):
        tiny().generate(**{"texts": "Two.", **arguments})
