"""What the quantizer's kernels do to memory, watched in the interpreter."""

import numpy as np
import pytest
import torch
from support.environment import ON_INTERPRETER
from support.interpreter import Launch, watched
from support.oracle import midpoints
from torch import Tensor

from muomni_fast.kernels.rvq.code_sums import _code_sums_kernel, code_sums
from muomni_fast.kernels.rvq.configs import ENCODE, decode_config
from muomni_fast.kernels.rvq.decode import _rvq_decode_kernel, decode_constants, rvq_decode
from muomni_fast.kernels.rvq.encode import _rvq_encode_kernel, encode_constants, rvq_encode
from muomni_fast.kernels.rvq.table import search_table

pytestmark = ON_INTERPRETER
CPU = torch.device("cpu")


def count() -> Tensor:
    return torch.zeros(1, dtype=torch.int32)


def encode_launch(mel: Tensor, books: Tensor, weight: Tensor | None, **options) -> Launch:
    table = search_table(books, mark_repeats=True)
    with watched() as launches:
        rvq_encode(mel, books, table, weight, None, count(), **options)
    (launch,) = launches
    return launch


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 130])
def test_encode_stays_in_bounds_and_writes_every_code_once(rows):
    books, weight = torch.randn(3, 20, 12), torch.randn(12, 24)
    mel = torch.cat([torch.randn(rows - 1, 24), torch.full((1, 24), torch.nan)])
    launch = encode_launch(mel, books, weight, with_sums=True)
    launch.check("codes_ptr", "sums_ptr")
    encode_launch(midpoints(books[0], rows), books, None).check("codes_ptr")


@pytest.mark.parametrize("width", [12, 200])
def test_decode_and_sums_stay_in_bounds_and_write_once(width):
    books, codes = torch.randn(3, 20, width), torch.randint(20, (70, 3))
    codes[5, 1], codes[69, 0] = -7, 2**33  # never an address
    for weight in (None, torch.randn(24, width)):
        with watched() as launches:
            rvq_decode(codes, books, weight, None, count())
        launches[0].check("out_ptr")
    with watched() as launches:
        code_sums(codes[:, 2], torch.randn(70, width), 20)
    launches[0].check("out_ptr")


def test_the_watcher_sees_faults():
    """A store past the end, a hole, a double store and a foreign read are all noticed."""
    good = {"x": (0, 16), "out": (16, 32)}
    at = lambda *a: [(np.array(a, dtype=np.uint64), 4)]
    for reads, writes, why in (
        ([at(0), at(16)], [at(16, 20), at(24, 28)], "reads what another wrote"),
        ([[], []], [at(16, 20), at(24, 32)], "leaves its tensors"),
        ([[], []], [at(16, 20), at(20, 24)], "written twice"),
        ([[], []], [at(16), at(24, 28)], "holes"),
    ):
        with pytest.raises(AssertionError, match=why):
            Launch(good, reads, writes, [[], []]).check("out")
    Launch(good, [at(0), at(4)], [at(16, 20), at(24, 28)], [[], []]).check("out")


def test_encode_moves_each_input_once():
    """Device memory traffic of the default shape: inputs, codes and weights once each, to 2 %."""
    rows, books, weight = 1024, torch.randn(2, 128, 64) / 8, torch.randn(64, 128) / 11
    mel = torch.randn(rows, 128)
    launch = encode_launch(mel, books, weight)
    size = lambda *tensors: sum(t.numel() * t.element_size() for t in tensors)
    table = search_table(books, mark_repeats=True)
    read = table[:, 1]  # the other half is torch's
    once = size(mel, weight, read, books) + rows * 2 * 8
    assert 0.98 * once <= launch.dram_bytes() <= once
    # Each program reads weight and table again, from the cache: 102 KB beside its own frames, and
    # the codewords of their codes and second candidates.
    programs = rows // ENCODE["sm_80", 64].block_n
    frames = rows * (128 * 4 + 2 * 8)
    least = frames + 0.95 * programs * size(weight, read)
    assert least <= launch.l2_bytes() <= frames + programs * size(weight, read, books)


@pytest.mark.parametrize("beyond", [2**31, 2**33])
def test_encode_offsets_do_not_wrap(probe, beyond):
    """Addresses of a program whose elements lie far beyond 2^31, with no memory behind them."""
    config = ENCODE["sm_80", 16]
    program = beyond // (config.block_n * 16)
    rows = (program + 1) * config.block_n
    x, codes = torch.zeros(16), torch.zeros(1, dtype=torch.int64)
    found = probe(program)
    _rvq_encode_kernel[(1,)](
        x_ptr=x,
        weight_ptr=None,
        bias_ptr=None,
        codebooks_ptr=torch.zeros(16),
        table_ptr=torch.zeros(20),
        codes_ptr=codes,
        sums_ptr=None,
        nonfinite_ptr=count(),
        N=rows,
        Q=1,
        stride_xn=16,
        **encode_constants(16, 16, 16, False, config),
    )
    first, last = program * config.block_n, rows - 1
    farthest = max(addresses.max() for addresses in found.read)
    assert x.data_ptr() + 4 * (last * 16 + 15) == farthest > x.data_ptr() + 4 * beyond
    assert codes.data_ptr() + 8 * first == found.written[0].min()
    assert codes.data_ptr() + 8 * last == found.written[0].max()


@pytest.mark.parametrize("beyond", [2**31, 2**33])
def test_decode_offsets_do_not_wrap(probe, beyond):
    config = decode_config(16, CPU, projected=True)
    program = beyond // (config.block_n * 16)
    rows = (program + 1) * config.block_n
    codes, out = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    found = probe(program)
    _rvq_decode_kernel[(1,)](
        codes_ptr=codes,
        tables_ptr=torch.zeros(16),
        weight_ptr=None,
        bias_ptr=None,
        out_ptr=out,
        invalid_ptr=count(),
        N=rows,
        Q=1,
        stride_cn=16,
        **decode_constants(16, 16, 16, config),
    )
    assert found.read[0].max() == codes.data_ptr() + 8 * 16 * (rows - 1)
    assert found.written[0].max() == out.data_ptr() + 4 * (rows * 16 - 1)


@pytest.mark.parametrize("beyond", [2**31, 2**33])
def test_offsets_of_sums_do_not_wrap(probe, beyond):
    rows, order, starts = torch.zeros(1), torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    out = torch.zeros(1, dtype=torch.float64)
    found = probe(2**20 - 1)  # code 2^18 - 1, last of four splits
    found.value = beyond // 16  # every position and row number read
    _code_sums_kernel[(1,)](
        rows_ptr=rows,
        order_ptr=order,
        starts_ptr=starts.long(),
        out_ptr=out,
        stride_rn=16,
        K=2**28,
        D=16,
        SPLITS=4,
        BLOCK_R=16,
        BLOCK_D=16,
    )
    assert found.written[0].max() == out.data_ptr() + 8 * ((3 * 2**28 + 2**18) * 16 - 1)
