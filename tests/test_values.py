"""Constructors name the argument, what they expect and what came; before they make anything."""

import time

import numpy as np
import pytest
import torch

import muomni_fast
from muomni_fast import (
    GriffinLimVocoder,
    MelConfig,
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    SpeechCodec,
    pool_frames,
    reference,
    unpool_frames,
)
from muomni_fast.reference import values

HUGE = 10**5000  # more digits than Python prints


@pytest.fixture(params=[reference, muomni_fast], ids=["reference", "fast"])
def lib(request: pytest.FixtureRequest):
    return request.param


def codec(frames_per_code):
    return SpeechCodec(
        muomni_fast.RVQ(), GriffinLimVocoder(), MelConfig(), frames_per_code=frames_per_code
    )


# A constructor, an argument of it, values of other types, values out of range.
SIZES = [
    ("RVQ", "n_codebooks", (1.0, "2", None, True), (0, -1, 257, 10**5, 2**63, HUGE)),
    ("RVQ", "codebook_size", (128.0, [128]), (1, 2**63, HUGE)),
    ("RVQ", "codebook_dim", ("64", False), (0, 10**9)),
    ("RVQ", "n_mels", (None, 80.5), (-80, 10**9)),
    ("RVQ", "bias", (1, "yes", None), ()),
    ("RVQ", "projections", (0, "no"), ()),
    ("HiFiGANVocoder", "n_mels", ("80", 80.0, None), (0, -1, 10**9, HUGE)),
    ("HiFiGANVocoder", "upsample_initial_channel", (256.0, None), (0, -256, 2**20, 10**9)),
    ("HiFiGANVocoder", "upsample_rates", (8, "8822", (8, 8, 2, 2.0), None), ([-8, -8, 2, 2],)),
    ("HiFiGANVocoder", "upsample_rates", ((8, 8, 2, True),), ((), (8, 0, 2, 2), [2] * 10**6)),
    ("HiFiGANVocoder", "upsample_kernel_sizes", ((16, 16, 4, "4"),), ((16, 16, 4, -4),)),
    ("HiFiGANVocoder", "resblock", (1, None, ["1"]), ("3", "")),
    ("HiFiGANVocoder", "resblock_kernel_sizes", ((3, 5, 7.0), 3), ((3, 5, -7), (3, 5, HUGE))),
    (
        "HiFiGANVocoder",
        "resblock_dilation_sizes",
        ((1, 2, 3), ((1, 1.5),) * 3),
        (((1,) * 99,) * 3,),
    ),
    ("HiFiGANVocoder", "weight_norm", (1, "true", None), ()),
]


def other_kinds(column):
    return [
        pytest.param(name, argument, row[column][i], id=f"{name}-{argument}-{column}-{i}")
        for name, argument, *row in SIZES
        for i in range(len(row[column]))
    ]


@pytest.mark.parametrize(("name", "argument", "value"), other_kinds(0))
def test_other_types_are_type_errors(lib, name, argument, value):
    with pytest.raises(TypeError, match=rf"{argument}.*: expected .*, got "):
        getattr(lib, name)(**{argument: value})


@pytest.mark.parametrize(("name", "argument", "value"), other_kinds(1))
def test_values_out_of_range_are_refused_at_once(lib, name, argument, value):
    start = time.perf_counter()
    with pytest.raises(ValueError, match=rf"{argument}.*expected .*got ") as error:
        getattr(lib, name)(**{argument: value})
    assert time.perf_counter() - start < 1 and len(str(error.value)) < 300


def test_models_larger_than_memory_are_refused(lib):
    for name, arguments in (
        ("RVQ", dict(n_codebooks=256, codebook_size=65536, codebook_dim=65)),
        ("HiFiGANVocoder", dict(upsample_initial_channel=65536)),
        ("ResBlock", dict(channels=65536, kernel_size=3, dilations=(1,))),
        ("MRF", dict(channels=65536, kernel_sizes=(3,), dilation_sizes=((1,),))),
    ):
        with pytest.raises(ValueError, match="at most 1,073,741,824 parameters, got"):
            getattr(lib, name)(**arguments)


def test_many_layers_are_refused(lib):
    dilations = [[1] * 22] * 3
    with pytest.raises(ValueError, match="at most 256 dilations on 4 levels together, got 264"):
        lib.HiFiGANVocoder(resblock_dilation_sizes=dilations)
    rates = dict(upsample_rates=(256, 512), upsample_kernel_sizes=(256, 512))
    with pytest.raises(ValueError, match="upsample_rates: .* at most 65,536, got 131,072"):
        lib.HiFiGANVocoder(**rates)


@pytest.mark.parametrize(
    ("make", "argument", "wrong", "kind"),
    [
        (lambda lib, v: lib.ResBlock(v, 3, (1,)), "channels", 4.0, TypeError),
        (lambda lib, v: lib.ResBlock(v, 3, (1,)), "channels", 0, ValueError),
        (lambda lib, v: lib.ResBlock(4, v, (1,)), "kernel_size", "3", TypeError),
        (lambda lib, v: lib.ResBlock(4, v, (1,)), "kernel_size", -1, ValueError),
        (lambda lib, v: lib.ResBlock(4, 3, v), "dilations", (1.5,), TypeError),
        (lambda lib, v: lib.ResBlock(4, 3, v), "dilations", 1, TypeError),
        (lambda lib, v: lib.ResBlock(4, 3, v), "dilations", (), ValueError),
        (lambda lib, v: lib.ResBlock(4, 3, (1,), v), "resblock", 1, TypeError),
        (lambda lib, v: lib.MRF(4, v, ((1,),)), "kernel_sizes", 3, TypeError),
        (lambda lib, v: lib.MRF(4, (3,), v), "dilation_sizes", (1,), TypeError),
        (lambda lib, v: MultiPeriodDiscriminator(v), "periods", (2, 2.5), TypeError),
        (lambda lib, v: MultiPeriodDiscriminator(v), "periods", (2, 0), ValueError),
        (lambda lib, v: MultiPeriodDiscriminator((2,), v), "channels_scale", "1", TypeError),
        (lambda lib, v: MultiPeriodDiscriminator((2,), v), "channels_scale", 0, ValueError),
        (lambda lib, v: MultiScaleDiscriminator(v), "n_scales", 2.0, TypeError),
        (lambda lib, v: MultiScaleDiscriminator(v), "n_scales", 10**6, ValueError),
        (lambda lib, v: MultiScaleDiscriminator(1, v), "channels_scale", 10**6, ValueError),
        (lambda lib, v: GriffinLimVocoder(n_iter=v), "n_iter", 1.5, TypeError),
        (lambda lib, v: codec(v), "frames_per_code", "5", TypeError),
        (lambda lib, v: codec(v), "frames_per_code", True, TypeError),
        (lambda lib, v: codec(v), "frames_per_code", 2.0, TypeError),
        (lambda lib, v: codec(v), "frames_per_code", 0, ValueError),
        (lambda lib, v: codec(v), "frames_per_code", 10**6, ValueError),
        (lambda lib, v: pool_frames(torch.zeros(4, 3), v), "frames_per_code", 1.5, TypeError),
        (lambda lib, v: unpool_frames(torch.zeros(4, 3), v), "frames_per_code", "2", TypeError),
    ],
)
def test_parts_name_their_arguments(lib, make, argument, wrong, kind):
    with pytest.raises(kind, match=rf"{argument}.*expected .*got "):
        make(lib, wrong)


def test_numpys_integers_are_integers(lib):
    """And are kept as Python's, so that a checkpoint's JSON can hold them."""
    rvq = lib.RVQ(np.int64(2), np.int32(8), np.uint8(4), n_mels=np.int64(6))
    assert [type(value) for value in rvq.config.values()] == [int] * 4 + [bool] * 2
    model = lib.HiFiGANVocoder(
        np.int64(6), [np.int64(2)], [np.int64(4)], np.int64(4), "2", [np.int64(3)], [[np.int64(1)]]
    )
    plain = lib.HiFiGANVocoder(6, (2,), (4,), 4, "2", (3,), ((1,),))
    assert model.config == plain.config and repr(model.config) == repr(plain.config)
    assert codec(np.int64(5)).frames_per_code == 5


def test_numbers():
    assert values.require_number("x", np.float32(0.5)) == 0.5
    assert values.require_number("x", 3) == 3.0
    for wrong in (True, "1", None, 1j, [1.0]):
        with pytest.raises(TypeError, match="x: expected a number, got"):
            values.require_number("x", wrong)
    for wrong in (float("nan"), float("-inf"), HUGE):
        with pytest.raises(ValueError, match="x: expected a finite number, got"):
            values.require_number("x", wrong)


def test_what_is_shown_is_short():
    for value in (HUGE, [HUGE], "x" * 10**6, list(range(10**6)), {i: i for i in range(10**5)}):
        assert len(values.shown(value)) < 200
    assert values.shown("\ud800") == repr("\ud800")  # which can be printed
