"""What the vocoder's kernels do to memory, watched in the interpreter."""

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from support import interpreter as watch
from support.environment import ON_INTERPRETER
from support.interpreter import Launch, Probe, watched
from support.small_vocoders import strips
from torch import Tensor

import muomni_fast
from muomni_fast import reference
from muomni_fast.kernels.vocoder import configs as conv_configs
from muomni_fast.kernels.vocoder.configs import ConvConfig, reaches, strip_halo
from muomni_fast.kernels.vocoder.conv import _conv_kernel
from muomni_fast.kernels.vocoder.conv_post import _conv_post_grad_kernel, _conv_post_kernel
from muomni_fast.kernels.vocoder.mrf_step import _mrf_step_kernel
from muomni_fast.kernels.vocoder.mrf_strip import _mrf_strip_kernel
from muomni_fast.kernels.vocoder.weight_grad import _weight_grad_kernel
from muomni_fast.reference.training.presets import presets
from muomni_fast.vocoder import generator as generators
from muomni_fast.vocoder import triton_backend as backend
from muomni_fast.vocoder.plan import plan_of_blocks, plan_of_generator
from muomni_fast.vocoder.shapes import Blocks

pytestmark = ON_INTERPRETER
TAPS, DILATIONS = (3, 5), ((1, 3), (1, 2))
SHAPE = 16, 16, 64, "ieee", 1  # a tile


@pytest.fixture(autouse=True)
def tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_configs, "INTERPRETER_TILE", ConvConfig(16, 16, 64, 4, 1))


# Bounds, and who writes what


@pytest.mark.parametrize("kind", ["1", "2"])
def test_every_kernel_stays_in_bounds_and_writes_every_element_once(kind):
    """A generator, forward and backward; 6 channels and rates that leave tiles unfilled. One of
    them with addends."""
    model = reference.HiFiGANVocoder(5, (3, 2), (7, 4), 24, kind, TAPS, DILATIONS)
    tensors, shape = (
        [t.detach() for t in plan_of_generator(model).tensors()],
        plan_of_generator(model).shape,
    )
    mel, layers, added = torch.randn(2, 5, 7), backend.layers(tensors, shape), []
    if kind == "2":
        shape, added = dataclasses.replace(shape, addends=(0, 1)), [torch.randn(2, 24, 1)]
        added.append(torch.randn(2, 12, 21))
    with watched() as launches:
        audio, kept = generators.forward(backend, mel, layers, shape, None, True, added)
        tensors += added
        needs = [True] * (1 + len(tensors))
        generators.backward(
            backend, torch.randn_like(audio), audio, mel, kept, tensors, shape, None, needs
        )
    assert {tuple(outputs(launch)) for launch in launches} == {
        ("out_ptr",),  # of a convolution, or gradients of weights and biases
        ("grad_x_ptr", "grad_w_ptr", "grad_b_ptr"),
    }
    for launch in launches:
        launch.check(*outputs(launch))


def outputs(launch: Launch) -> list[str]:
    """Tensors written to."""
    if "grad_x_ptr" in launch.tensors:
        return ["grad_x_ptr", "grad_w_ptr", "grad_b_ptr"]
    return ["out_ptr"]


@pytest.mark.parametrize("path", ["steps", "strips"])
def test_rows_after_an_items_end_are_not_read(monkeypatch, path):
    x, lengths = torch.randn(3, 40, 8), torch.tensor([2, 0, 9])
    packed = packed_blocks("1")
    if path == "strips":
        strips(monkeypatch, 16, 2)
    with watched() as launches:
        backend.mrf(x, packed, Blocks("1", TAPS, DILATIONS), False, (lengths, 4))
    ends = x.data_ptr() + 4 * 8 * (torch.arange(3) * 40 + lengths * 4)
    for reads in launches[0].reads:
        for addresses, _ in reads:
            for end, last in zip(ends.tolist(), (40, 80, 120), strict=True):
                past = (addresses >= end) & (addresses < x.data_ptr() + 4 * 8 * last)
                assert not past.any()


def packed_blocks(kind: str) -> list[Tensor]:
    module = reference.MRF(8, TAPS, DILATIONS, kind)
    tensors = [t.detach() for t in plan_of_blocks(list(module.resblocks)).tensors()]
    return backend.pack_blocks(tensors, Blocks(kind, TAPS, DILATIONS))


# Strips: scratch is a program's own, and used again and again


@contextlib.contextmanager
def in_order() -> Iterator[list[tuple[int, str, np.ndarray]]]:
    """Every access and barrier of a launch: program, "reads", "writes" or "barrier", addresses."""
    from triton.runtime.interpreter import InterpreterBuilder

    events: list[tuple[int, str, np.ndarray]] = []
    with watched() as launches, pytest.MonkeyPatch.context() as patch:
        note = watch._Recorder._note
        program = lambda: len(launches[-1].reads) - 1

        def noted(self, kind, *args):
            note(self, kind, *args)
            events.append((program(), kind, getattr(launches[-1], kind)[-1][-1][0]))

        def barrier(self):
            events.append((program(), "barrier", np.zeros(0, np.uint64)))

        patch.setattr(watch._Recorder, "_note", noted)
        patch.setattr(InterpreterBuilder, "create_barrier", barrier)
        yield events
        strip_launches.extend(launches)


strip_launches: list[Launch] = []


@pytest.mark.parametrize("kind", ["1", "2"])
@pytest.mark.parametrize(("length", "programs"), [(16, 2), (13, 3), (48, 1), (16, 99)])
def test_strips_share_nothing_but_input_and_output(monkeypatch, kind, length, programs):
    """Programs keep to their own scratch, read there only what this strip has written, and a
    barrier lies between an access and one to the same element by another thread."""
    strips(monkeypatch, length, programs)
    x = torch.randn(2, 70, 8)
    strip_launches.clear()
    with in_order() as events:
        backend.mrf(x, packed_blocks(kind), Blocks(kind, TAPS, DILATIONS), False)
    (launch,) = strip_launches
    count = len(launch.reads)
    assert count == min(programs, 2 * -(-70 // length))
    check_output(launch)
    first, last = launch.tensors["scratch_ptr"]
    out = launch.tensors["out_ptr"]
    assert (last - first) % count == 0
    share = (last - first) // count
    for program in range(count):
        mine = [(kind, addresses) for p, kind, addresses in events if p == program]
        check_scratch(mine, first + program * share, share, (first, last), out)


def check_output(launch: Launch) -> None:
    """As `Launch.check`, of what is not scratch."""
    inside = launch.tensors["scratch_ptr"]
    for kind in ("reads", "writes"):
        for accesses in getattr(launch, kind):
            for addresses, _ in accesses:
                assert launch._inside(addresses)
    for accesses in (*launch.reads, *launch.writes):
        accesses[:] = [(a[(a < inside[0]) | (a >= inside[1])], size) for a, size in accesses]
    launch.check("out_ptr")


def check_scratch(
    events: list[tuple[str, np.ndarray]],
    first: int,
    share: int,
    scratch: tuple[int, int],
    out: tuple[int, int],
) -> None:
    """One program's accesses in order."""
    fresh = np.zeros(share // 4, bool)  # written since this strip began
    unsettled = np.zeros(share // 4, bool)  # written since the last barrier
    read: list[np.ndarray] = []  # since the last barrier
    ending = False
    for kind, addresses in events:
        at = addresses[(addresses >= scratch[0]) & (addresses < scratch[1])]
        at = (at.astype(np.int64) - first) // 4
        assert ((at >= 0) & (at < share // 4)).all(), "another program's scratch"
        if kind == "barrier":
            unsettled[:], read = False, []
        elif kind == "reads":
            assert fresh[at].all(), "reads what this strip has not written"
            assert not unsettled[at].any(), "reads what may not be written yet"
            read.append(at)
        elif len(at):
            if ending:  # the strip before this one is done
                fresh[:], ending = False, False
            for earlier in read:  # only a thread's own elements, updated in place
                same = np.isin(earlier, at)
                assert not same.any() or np.array_equal(earlier, at), "overwrites what may be read"
            fresh[at] = unsettled[at] = True
        ending |= kind == "writes" and bool(((addresses >= out[0]) & (addresses < out[1])).any())


# Launches


@pytest.mark.parametrize(
    ("preset", "steps"), [("muomni", 22), ("v1", 30), ("v2", 30), ("v3", 11)], ids=str
)
def test_launches_of_a_generator(monkeypatch, preset, steps):
    """One for each step of a stage, or one for a stage; the number of channels does not matter."""
    monkeypatch.setenv("MUOMNI_FAST_BACKEND", "triton")
    shape = presets()[preset].recipe("vocoder").model
    config = {**shape, "upsample_initial_channel": 16, "weight_norm": False}
    model = muomni_fast.HiFiGANVocoder(**config).eval()
    mel = torch.randn(1, model.n_mels, 1)
    monkeypatch.setattr(conv_configs, "INTERPRETER_TILE", ConvConfig(256, 16, 64, 4, 1))
    with watched() as launches, torch.no_grad():
        audio = model(mel)
    assert len(launches) == steps
    strips(monkeypatch, 256, 4)
    with watched() as launches, torch.no_grad():
        torch.testing.assert_close(model(mel), audio)
    assert len(launches) == 2 + 2 * len(model.ups) <= 18


# Offsets beyond 2^31, with no memory behind them: one long item, or many

BEYOND = pytest.mark.parametrize("beyond", [2**31, 2**33])
ITEMS = pytest.mark.parametrize("rows", ["long", "short"])


def sizes(beyond: int, rows: str) -> tuple[int, int]:
    """Items and rows of (B, T, 16) that end beyond an element."""
    return (2, beyond // 16) if rows == "long" else (beyond // 256 + 1, 16)


def farthest(found: Probe, tensor: Tensor) -> None:
    """Elements from a tensor's first to the last one written."""
    return (int(max(a.max() for a in found.written if len(a))) - tensor.data_ptr()) // 4


@BEYOND
@ITEMS
def test_offsets_of_a_convolution_do_not_wrap(probe, beyond, rows):
    batch, rows = sizes(beyond, rows)
    x, added, out = torch.zeros(16), torch.zeros(16), torch.zeros(16)
    found = probe(batch * rows // 16 - 1)
    _conv_kernel[(1,)](
        x_ptr=x,
        sign_ptr=None,
        w_ptr=torch.zeros(256),
        b_ptr=None,
        add_ptr=added,
        out_ptr=out,
        lengths_ptr=None,
        T=rows,
        rows_per_frame=1,
        taps=1,
        N=16,
        C=16,
        DILATION=1,
        OFFSET=0,
        STRIDE=1,
        PHASES=None,
        SLOPE=1.0,
        CHANNELS_FIRST=False,
        EACH_ROW=True,
        TILE=SHAPE,
    )
    assert farthest(found, out) == batch * rows * 16 - 1 > beyond
    assert found.read[0].max() == x.data_ptr() + 4 * (batch * rows * 16 - 1)
    assert found.read[-1].max() == added.data_ptr() + 4 * (batch * rows * 16 - 1)


@BEYOND
@ITEMS
def test_offsets_of_a_step_do_not_wrap(probe, beyond, rows):
    """The second branch's: a whole (B, T, C) further."""
    batch, rows = sizes(beyond, rows)
    x, out = torch.zeros(16), torch.zeros(16)
    found = probe(2 * (batch * rows // 16) - 1)
    _mrf_step_kernel[(1,)](
        x_ptr=x,
        res_ptr=x,
        sign_ptr=x,
        w_ptr=torch.zeros(512),
        b_ptr=None,
        out_ptr=out,
        lengths_ptr=None,
        B=batch,
        T=rows,
        rows_per_frame=1,
        scale=1.0,
        C=16,
        TAPS=(1, 1),
        DILATIONS=(1, 1),
        SHARED=(False, False, False),
        SUM=False,
        SLOPE=0.1,
        IN_SLOPE=0.1,
        OUT_SLOPE=1.0,
        TILE=SHAPE,
    )
    end = 2 * batch * rows * 16 - 1
    assert farthest(found, out) == end > 2 * beyond
    for addresses in (found.read[0], *found.read[-2:]):
        assert addresses.max() == x.data_ptr() + 4 * end


@BEYOND
@ITEMS
def test_offsets_of_a_strip_do_not_wrap(probe, beyond, rows):
    batch, rows = sizes(beyond, rows)
    taps, dilations = (3,), ((1,),)
    halo = strip_halo(taps, dilations, True)
    x, out, scratch = torch.zeros(16), torch.zeros(16), torch.zeros(16)
    program = batch * rows // 16 - 1
    found = probe(program)
    _mrf_strip_kernel[(1,)](
        x_ptr=x,
        w_ptr=torch.zeros(2 * 768),
        b_ptr=torch.zeros(32),
        out_ptr=out,
        scratch_ptr=scratch,
        lengths_ptr=None,
        B=batch,
        T=rows,
        rows_per_frame=1,
        scale=1.0,
        C=16,
        TAPS=taps,
        DILATIONS=sum(dilations, ()),
        REACH=sum(reaches(taps, dilations, True), ()),
        HALO=halo,
        LENGTH=16,
        PAIRED=True,
        SLOPE=0.1,
        TILE=SHAPE,
    )
    assert found.written[-1].max() == out.data_ptr() + 4 * (batch * rows * 16 - 1)
    slices = 2 * (16 + 2 * halo) * 16
    begin = scratch.data_ptr() + 4 * program * slices
    assert begin <= found.written[0].min() < found.written[0].max() < begin + 4 * slices


@BEYOND
@ITEMS
def test_offsets_of_the_last_convolution_do_not_wrap(probe, beyond, rows):
    batch, rows = sizes(beyond, rows)
    x, out, w = torch.zeros(16), torch.zeros(16), torch.zeros(16)
    found = probe(batch * rows // 16 - 1)
    _conv_post_kernel[(1,)](
        x_ptr=x,
        w_ptr=w,
        b_ptr=w,
        out_ptr=out,
        lengths_ptr=None,
        T=rows,
        rows_per_frame=1,
        C=16,
        TAPS=1,
        SLOPE=0.1,
        FINAL="tanh",
        BLOCK_T=16,
        BLOCK_C=16,
    )
    assert found.read[0].max() == x.data_ptr() + 4 * (batch * rows * 16 - 1)
    assert farthest(found, out) == batch * rows - 1


@BEYOND
@ITEMS
def test_offsets_of_gradients_do_not_wrap(probe, beyond, rows):
    batch, rows = sizes(beyond, rows)
    x, y, w, out, bias = (torch.zeros(16) for _ in range(5))
    program = batch * rows // 16 - 1
    found = probe(program)
    _conv_post_grad_kernel[(1,)](
        grad_ptr=y,
        out_ptr=y,
        x_ptr=x,
        w_ptr=w,
        grad_x_ptr=out,
        grad_w_ptr=w,
        grad_b_ptr=bias,
        lengths_ptr=None,
        B=batch,
        T=rows,
        rows_per_frame=1,
        C=16,
        TAPS=1,
        SLOPE=0.1,
        BLOCK_T=16,
        BLOCK_C=16,
        BLOCK_TAPS=1,
    )
    end = batch * rows * 16 - 1
    assert found.written[0].max() == out.data_ptr() + 4 * end
    found = probe(program)
    _weight_grad_kernel[(1,)](
        y_ptr=y,
        x_ptr=x,
        out_ptr=out,
        lengths_ptr=None,
        B=batch,
        T=rows,
        rows_per_frame=1,
        splits=program + 1,
        N=16,
        C=16,
        TAPS=(1,),
        DILATIONS=(1,),
        PADDINGS=(0,),
        BLOCKS=(1,),
        STRIDE=1,
        SHARED=(True, True),
        SLOPES=(1.0, 0.1),
        CHANNELS_FIRST=False,
        WITH_BIAS=True,
        TILE=(16, 16, 16, "ieee", 1),
    )
    assert found.read[0].max() == y.data_ptr() + 4 * end
    assert found.read[1].max() == x.data_ptr() + 4 * end
    last = (program + 1) * (256 + 16) - 1  # weights and bias, of each split
    assert found.written[0].max() == out.data_ptr() + 4 * (last - 16)
    assert found.written[1].max() == out.data_ptr() + 4 * last
