"""The kernel that draws codes and embeds them: on a GPU, or interpreted."""

import dataclasses

import pytest
import torch
import triton
import triton.language as tl
from support.environment import DEVICE, ON_KERNELS
from support.talkers import SENTENCES, VOICES, tiny
from torch import Tensor

import muomni_fast
from muomni_fast.kernels.talker.sample import _noise, sample
from muomni_fast.reference.talker.generation import Steps
from muomni_fast.talker.steps import KernelSteps

pytestmark = ON_KERNELS

DEVIATIONS = 4.5  # a frequency is so many of them off once in 150,000


@dataclasses.dataclass
class Problem:
    """Arguments of `sample`: random embeddings, and outputs that hold what nobody wrote."""

    logits: Tensor
    dim: int
    step: int = 3
    end: list[int] | None = None
    max_frames: int = 9

    def run(self, temperature: float = 0.0, seed: int = 0) -> "Problem":
        batch, n_codebooks, classes = self.logits.shape
        self.table = torch.randn(n_codebooks * (classes + 1), self.dim)
        self.row = torch.full((batch, n_codebooks), -7)
        self.x = torch.full((batch, self.dim), torch.nan)
        ends = [self.max_frames + 1] * batch if self.end is None else self.end
        self.ends = torch.tensor(ends)
        step, options = torch.tensor([self.step]), (self.max_frames, temperature, seed)
        sample(self.logits, self.table, step, self.ends, self.row, self.x, *options)
        assert int(step) == self.step
        return self

    def embedded(self) -> Tensor:
        """What `x` must be for the row, in float64."""
        n_codebooks, classes = self.logits.shape[1:]
        places = self.row + torch.arange(n_codebooks) * (classes + 1)
        return self.table.double()[places].sum(1)


def drawn(logits: Tensor, temperature: float, seed: int = 0, step: int = 70) -> Tensor:
    """Codes (B, Q) at a step at which nothing is padded."""
    return Problem(logits, 4, step, max_frames=100).run(temperature, seed).row


@pytest.mark.parametrize(
    ("n_codebooks", "size", "dim"), [(1, 16, 8), (3, 15, 16), (2, 128, 100), (70, 3, 17)]
)
def test_greedy_equals_torch(n_codebooks, size, dim):
    """Rounded logits tie: the lowest of equal ones."""
    logits = torch.randn(5, n_codebooks, size + 1).round()
    logits[:, 1:, -1] = -torch.inf
    logits[:, 0, -1] = -20  # no end here
    logits[0, :, 2:] = -torch.inf
    problem = Problem(logits, dim, step=70, max_frames=100).run()
    assert torch.equal(problem.row, logits.argmax(-1))
    torch.testing.assert_close(problem.x.double(), problem.embedded(), rtol=0, atol=1e-5)
    assert problem.ends.tolist() == [101] * 5


@pytest.mark.parametrize("n_codebooks", [1, 2, 4])
def test_ends_and_padding_are_the_references(n_codebooks):
    """Over all steps of items that end at once, at the cap, in between and never."""
    talker, frames = tiny(n_codebooks), 5
    rules = Steps(talker, max_frames=frames)
    stops = [0, 2, frames - 1, frames, frames + 9]
    end, ends = torch.full((len(stops),), frames + 1), [frames + 1] * len(stops)
    seen = set()
    for step in range(rules.most):
        logits = torch.randn(len(stops), n_codebooks, 17)
        logits[:, 1:, -1] = -torch.inf
        # An end is said again after the first, which changes nothing.
        logits[:, 0, -1] = torch.tensor([50.0 if step >= stop else -50.0 for stop in stops])
        row, end = rules.settled(logits.argmax(-1), end, step)
        problem = Problem(logits, 32, step, ends, frames).run()
        assert torch.equal(problem.row, row) and torch.equal(problem.ends, end)
        torch.testing.assert_close(problem.x.double(), problem.embedded(), rtol=0, atol=1e-5)
        ends = problem.ends.tolist()
        seen.update(row.flatten().tolist())
    assert ends[:4] == stops[:4] and ends[4] == frames + 1
    assert talker.pad in seen and talker.end not in seen


@triton.jit
def _noises_kernel(out_ptr, seed, q, item, step, N: tl.constexpr):
    o_k = tl.arange(0, N)
    item, step = tl.full([], item, tl.int64), tl.full([], step, tl.int64)
    tl.store(out_ptr + o_k, _noise(seed, o_k, q, item, step))


def noises(count: int, q: int, item: int, seed: int = 0, step: int = 70) -> Tensor:
    """What the kernel adds to the scores of a codebook's classes."""
    out = torch.empty(count)
    _noises_kernel[(1,)](out, seed, q, item, step, N=count)
    return out


def assert_frequencies(codes: Tensor, expected: Tensor) -> None:
    """Within binomial bounds, and never what has no probability."""
    assert ((codes >= 0) & (codes < len(expected))).all(), codes
    found = torch.bincount(codes.flatten(), minlength=len(expected)).double()
    deviation = (expected * (1 - expected) * codes.numel()).sqrt()
    assert ((found - expected * codes.numel()).abs() <= DEVIATIONS * deviation).all(), found


def uneven() -> Tensor:
    """Logits of 8 classes, one of them impossible, and the end of speech, which is too."""
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, 0.0, -0.4, 0.8, -2.0, 0.0])
    return logits.index_fill(0, torch.tensor([4, 8]), -torch.inf)


def test_frequencies_are_those_of_the_softmax():
    """Of all codebooks and items together, so that noise that repeats would show."""
    codes = drawn(uneven().expand(20, 10, 9).contiguous(), 0.7)
    assert_frequencies(codes, (uneven() / 0.7).softmax(-1).double())


def test_noise_makes_draws_of_the_softmax():
    """Its every value: where 27,000 draws of it are taken, and that the kernel takes them so."""
    noise = torch.cat([noises(1 << 15, q, 0) for q in range(8)])[: 27_000 * 9].view(-1, 9)
    for temperature in (0.7, 1.5):
        codes = (uneven() / temperature + noise).argmax(-1)
        assert_frequencies(codes, (uneven() / temperature).softmax(-1).double())
    times = noise.double().neg().exp()  # of an exponential distribution: mean and deviation 1
    assert abs(times.mean() - 1) < DEVIATIONS / times.numel() ** 0.5
    assert abs(times.std() - 1) < DEVIATIONS * (2 / times.numel()) ** 0.5
    logits = torch.randn(2, 3, 100)
    logits[..., -1] = -torch.inf
    noise = torch.stack([noises(128, q, item, 5) for item in range(2) for q in range(3)])
    expected = (logits / 0.9 + noise.view(2, 3, 128)[..., :100]).argmax(-1)
    assert torch.equal(drawn(logits, 0.9, seed=5), expected)


def test_draws_depend_on_seed_step_item_codebook_and_on_nothing_else():
    logits = torch.zeros(2, 3, 4097)
    logits[..., -1] = -torch.inf
    first = drawn(logits, 1.0)
    assert len(set(first.flatten().tolist())) == 6
    assert torch.equal(first[:1], drawn(logits[:1], 1.0))
    for change in ({"seed": 1}, {"seed": 1 << 40}, {"step": 71}):
        assert (drawn(logits[:1], 1.0, **change) != first[:1]).all(), change


def test_what_top_k_leaves_out_is_not_drawn():
    logits = torch.arange(17.0).expand(2, 4, 17).flip(-1)
    kept = Steps(tiny(1), temperature=1.0, top_k=2).likeliest(logits).contiguous()
    assert set(drawn(kept, 5.0).flatten().tolist()) == {0, 1}
    kept = Steps(tiny(1), temperature=1.0, top_k=1).likeliest(logits).contiguous()
    assert (drawn(kept[:, :1], 1e3) == 0).all()


def test_no_items():
    Problem(torch.zeros(0, 2, 5), 8).run()


@pytest.mark.parametrize("items", [slice(None), slice(1)], ids=["batch", "alone"])
def test_talkers_say_by_it_what_they_say_by_torch(monkeypatch, items):
    """Greedy: steps of a fixed shape and the kernel at their end; some items end."""
    plain = tiny()
    model = muomni_fast.Talker(**plain.config).to(DEVICE).eval()
    model.load_state_dict(plain.state_dict())
    said = []
    for backend in ("torch", "triton"):
        monkeypatch.setenv("MUOMNI_FAST_BACKEND", backend)
        said.append(model.generate(SENTENCES[items], VOICES[items], max_frames=12))
    assert type(model.steps()) is KernelSteps
    assert torch.equal(said[0].codes, said[1].codes)
    assert torch.equal(said[0].lengths, said[1].lengths) and said[0].lengths.min() < 12
