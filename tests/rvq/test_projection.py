"""The exact projection: every number is the one in real arithmetic, rounded once."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from muomni_fast import reference
from muomni_fast.reference.rvq.projection import project, rounded_sum


def to_float32(exact: Fraction) -> float:
    """The float32 nearest to a fraction, the even one of two; not for huge ones."""
    if exact == 0:
        return 0.0
    size = abs(exact)
    power = size.numerator.bit_length() - size.denominator.bit_length()
    power -= Fraction(2) ** power > size
    unit = Fraction(2) ** max(power - 23, -149)
    return math.copysign(float(round(size / unit) * unit), exact)


def expected(mel: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shift = [0.0] * len(weight) if bias is None else bias.tolist()
    rows = [[Fraction(x) for x in row] for row in mel.double().tolist()]
    columns = [[Fraction(w) for w in column] for column in weight.tolist()]
    sums = [
        [
            sum((x * w for x, w in zip(row, column, strict=True)), Fraction(b))
            for column, b in zip(columns, shift, strict=True)
        ]
        for row in rows
    ]
    return torch.tensor([[to_float32(total) for total in row] for row in sums])


def cancelling() -> tuple[Tensor, Tensor]:
    """Sums that leave a millionth of their terms."""
    mel, weight = torch.randn(20, 64), torch.randn(16, 64)
    return torch.cat([mel, -mel], 1), torch.cat([weight, weight * (1 + 2.0**-20)], 1)


def in_the_middle() -> tuple[Tensor, Tensor]:
    """Sums half-way between two float32, exactly and all but."""
    tiny = 0, 2.0**-60, -(2.0**-60), 2.0**-57, -(2.0**-57)
    mel = torch.tensor([[1.0, 2.0**-24, term, 2.0**-23] for term in tiny])
    weight = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, 1.0, 0.0]])
    return mel, weight


HARD = {
    "random": lambda: (torch.randn(20, 70), torch.randn(9, 70)),
    "cancelling": cancelling,
    "in the middle": in_the_middle,
    "half precision": lambda: (
        torch.randn(20, 70).bfloat16(),
        torch.randn(9, 70).bfloat16().float(),
    ),
    "float16": lambda: (torch.randn(20, 70).half(), torch.randn(9, 70)),
    "integers": lambda: (
        torch.randint(-(2**12), 2**12, (20, 70)).float(),
        torch.randint(-(2**12), 2**12, (9, 70)).float(),
    ),
    "tiny weights": lambda: (torch.ones(1, 3), torch.tensor([[1, 2.0**-24, 2.0**-60]]) * 2.0**-80),
    "tiny": lambda: (1e-25 * torch.randn(20, 70), 1e-18 * torch.randn(9, 70)),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("biased", [False, True])
def test_numbers_are_rounded_once(name, biased):
    mel, weight = HARD[name]()
    bias = weight[:, 0] * 3 if biased else None
    assert torch.equal(project(mel, weight, bias), expected(mel, weight, bias))


def test_a_bias_can_be_the_largest_term():
    mel = torch.tensor([[2.0**-24, 2.0**-60], [2.0**-24, -(2.0**-60)]])
    weight, bias = torch.ones(1, 2), torch.ones(1)
    assert torch.equal(project(mel, weight, bias), expected(mel, weight, bias))


def test_float64_sums_alone_are_not_enough():
    """The cases are hard: a float64 product that is rounded gets some of them wrong."""
    mel, weight = in_the_middle()
    rounded = (mel.double() @ weight.double().t()).float()
    assert not torch.equal(rounded, expected(mel, weight, None))


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8))
@example([1.0, 2.0**-24, 2.0**-80])
@example([1.0, 2.0**-24, -(2.0**-80)])
@example([1.0, 2.0**-23, 2.0**-24])
@settings(deadline=None)
def test_sums_are_rounded_once(terms):
    assert rounded_sum(terms) == to_float32(sum(map(Fraction, terms)))


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_next_to_the_largest_float32(sign):
    """Half-way between it and 2^128 they are infinite, and a little below they are not."""
    middle = [sign * 2.0**128, sign * -(2.0**103)]
    largest = sign * torch.finfo(torch.float32).max
    assert rounded_sum([*middle, sign * -1e-30]) == largest
    assert rounded_sum(middle) == rounded_sum([*middle, sign * 1e-30]) == sign * torch.inf
    assert rounded_sum([sign * 1e50]) == sign * torch.inf


def test_frames_that_are_not_finite_stay_so():
    mel = torch.randn(600, 12)
    mel[3, 1], mel[599, 0] = torch.nan, torch.inf
    found = project(mel, torch.randn(5, 12), torch.randn(5))
    assert found.isfinite().all(1).logical_not().nonzero()[:, 0].tolist() == [3, 599]


def test_a_product_that_overflows_on_the_way_does_not_matter():
    """Nor to the reference's gradients, whose forward sees the exact projection too."""
    rvq = reference.RVQ(1, 4, 2, n_mels=4)
    with torch.no_grad():
        rvq.proj_in.weight.copy_(torch.tensor([[2.0, -2, 1, 0], [-2, 2, 0, 1]]))
    mel = torch.tensor([[3e38, 3e38, 1, 0.5]])
    assert rvq.project(mel).tolist() == [[1, 0.5]]
    assert torch.equal(rvq(mel).codes, rvq.encode(mel))
