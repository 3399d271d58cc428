"""The benchmarks of codes with codebooks of speech, at toy sizes: what they print and count."""

import pytest
import torch

import muomni_fast

pytest.importorskip("soundfile")
import adversarial  # noqa: E402
import codes  # noqa: E402
import contenders  # noqa: E402
from speech_problems import Sizes, problem  # noqa: E402


@pytest.mark.parametrize("sizes", [Sizes(2, 16, 128), Sizes(3, 16, 8, 128)], ids=str)
@torch.no_grad()
def test_tables_of_codes(sizes, capsys):
    rvq, rows = problem(sizes, training=200, held_out=100)
    shape = codes.Shape(sizes, codes.VQT)
    lines = [codes.speed(shape, n, rvq, rows) for n in (1, 100)]
    assert all(share > 0.9 for share in lines[1]["equal"].values())
    codes.print_speed("tiny", shape, lines)
    codes.print_flatness("tiny", codes.flatness(rvq, rows))
    codes.print_single({"tiny": codes.single(rvq, rows)})
    printed = capsys.readouterr().out
    assert printed.count("tiny") == 3 and "offset 100, all codebooks" in printed


@torch.no_grad()
def test_contenders_are_given_the_same_codebooks():
    rvq, rows = problem(Sizes(2, 16, 8, 128), training=200, held_out=100)
    expected = rvq.encode(rows)
    makers = (getattr(contenders, name) for name in SEARCHES)
    for make in makers:
        try:
            found = make(rvq, rows)()
        except ModuleNotFoundError:
            continue
        assert (found == expected).double().mean() > 0.99, make.__name__


SEARCHES = "fast", "prepared", "broadcast", "vector_quantize", "encodec", "mimi", "xcodec"


def test_rows_of_a_table_are_few_where_codebooks_are_large():
    assert codes.row_counts(codes.DEFAULT) == list(codes.ROWS)
    assert codes.row_counts(codes.XCODEC) == [1, 16, 100, 500, 2_048, 4_096]


def test_adversarial_rows_are_counted(monkeypatch):
    assert adversarial.check(500) == 0
    encode = muomni_fast.RVQ.encode

    def wrong(self, mel):
        return (encode(self, mel) + (mel[:, :1] > 3)) % self.codebook_size

    monkeypatch.setattr(muomni_fast.RVQ, "encode", wrong)
    assert adversarial.check(100) > 0
