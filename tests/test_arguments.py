"""Tensors that no function here computes with, and shapes that do not fit, are refused, and the
error names the argument."""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import muomni_fast
from muomni_fast import functional, reference
from muomni_fast.kernels.rvq.table import search_table
from muomni_fast.reference.rvq import functional as plain
from muomni_fast.rvq import ops as rvq_ops
from muomni_fast.vocoder import generator, plan

BOOKS, WEIGHT, BIAS = torch.randn(2, 8, 4), torch.randn(4, 6), torch.randn(4)
MEL, CODES, AUDIO = torch.randn(5, 6), torch.randint(8, (5, 2)), torch.randn(1, 600)
VOCODER = {"n_mels": 8, "upsample_rates": (4, 2), "upsample_kernel_sizes": (8, 4)}
FRAMES = torch.randn(1, 8, 5)

FLOATS = {  # function -> its floating point arguments, in order
    plain.rvq_encode: {"mel": MEL, "codebooks": BOOKS, "proj_in_weight": WEIGHT}
    | {"proj_in_bias": BIAS},
    plain.rvq_decode: {"codes": CODES, "codebooks": BOOKS, "proj_out_weight": WEIGHT.T}
    | {"proj_out_bias": torch.randn(6)},
    plain.rvq_quantize: {"mel": MEL, "codebooks": BOOKS, "proj_in_weight": WEIGHT}
    | {"proj_in_bias": BIAS, "proj_out_weight": WEIGHT.T, "proj_out_bias": torch.randn(6)},
    functional.code_sums: {"codes": CODES[:, 0], "rows": MEL, "codebook_size": 8},
    reference.log_mel: {"audio": AUDIO, "config": reference.MelConfig()},
}
FLOATS |= {getattr(functional, f.__name__): FLOATS[f] for f in [*FLOATS][:3]}
TABLE = search_table(BOOKS, mark_repeats=True)
FLOATS[functional.rvq_encode] = FLOATS[functional.rvq_encode] | {"table": TABLE}


def kinds(value: Tensor) -> dict[str, Tensor]:
    """A tensor as what is not computed with."""
    found = {
        "float8": value.float().to(torch.float8_e4m3fn),
        "complex": value.to(torch.complex64),
        "sparse": value.to_sparse(),
    }
    if value.is_floating_point():
        found |= {"integer": value.int(), "boolean": value > 0, "mkldnn": value.to_mkldnn()}
        found["quantized"] = torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)
    else:
        found |= {"float": value.float(), "boolean": value > 0}
    if value.ndim == 2:
        found["compressed"] = value.to_sparse_csr()
    if value.ndim > 1:
        found["nested"] = torch.nested.nested_tensor(list(value.float()))
        if value.is_floating_point():
            found["jagged"] = torch.nested.nested_tensor(list(value), layout=torch.jagged)
    return found


@pytest.mark.filterwarnings("ignore:.*(beta state|nested tensors is in prototype).*")
@pytest.mark.parametrize(
    "function, arguments",
    [
        pytest.param(f, a, id=f"{f.__module__.split('.')[1]}-{f.__name__}")
        for f, a in FLOATS.items()
    ],
)
def test_functions_name_the_argument(function, arguments):
    function(**arguments)
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            for kind, wrong in kinds(value).items():
                with pytest.raises(TypeError, match=f"^{name}: expected ") as error:
                    function(**{**arguments, name: wrong})
                assert str(error.value).count("got") == 1, (name, kind)


@pytest.mark.filterwarnings("ignore:.*(beta state|nested tensors is in prototype).*")
@pytest.mark.parametrize("lib", [reference, muomni_fast], ids=["reference", "fast"])
def test_modules_name_the_argument(lib):
    rvq, block = lib.RVQ(2, 8, 4, 8), lib.ResBlock(8, 3, (1,))
    vocoder = lib.HiFiGANVocoder(**VOCODER, upsample_initial_channel=16)
    griffin_lim = lib.GriffinLimVocoder(reference.MelConfig(n_mels=8), n_iter=1)
    codec = lib.SpeechCodec(rvq, griffin_lim, griffin_lim.config)
    calls = [
        (rvq.encode, "mel", FRAMES.transpose(1, 2)),
        (rvq.forward, "mel", FRAMES.transpose(1, 2)),
        (rvq.decode, "codes", CODES),
        (vocoder, "mel", FRAMES),
        (lambda lengths: vocoder(FRAMES, lengths), "lengths", torch.tensor([3])),
        (griffin_lim, "mel", FRAMES),
        (block, "x", FRAMES),
        (lib.MRF(8, (3,), ((1,),)), "x", FRAMES),
        (lambda x: functional.mrf(x, [block]), "x", FRAMES),
        (codec.encode, "audio", AUDIO),
        (codec.decode, "codes", CODES[None]),
    ]
    for call, name, value in calls:
        call(value)
        for wrong in kinds(value).values():
            with pytest.raises(TypeError, match=f"^{name}: expected "):
                call(wrong)


# Shapes

RVQ, BLOCK = muomni_fast.RVQ(2, 8, 4, 6), muomni_fast.ResBlock(8, 3, (1,))
GENERATOR = muomni_fast.HiFiGANVocoder(**VOCODER, upsample_initial_channel=16)
OF_FRAMES = torch.zeros(8, 5), torch.zeros(1, 7, 5), torch.zeros(1, 1, 8, 5), torch.zeros(1, 8, 0)
OF_MEL = torch.tensor(1.0), MEL[:, :5]
OF_CODES = torch.tensor(1), CODES[:, [0, 1, 0]]
OF_ENCODING = {
    "mel": OF_MEL,
    "codebooks": (BOOKS[0], BOOKS[:, :1]),
    "proj_in_weight": (WEIGHT[0], WEIGHT[:3]),
    "proj_in_bias": (BIAS[:3], BIAS[None]),
}
OF_DECODING = {"proj_out_weight": (WEIGHT[0], WEIGHT), "proj_out_bias": (BIAS, torch.ones(1, 6))}
SHAPES: dict[Callable[..., object], dict[str, tuple[Tensor, ...]]] = {
    functional.rvq_encode: OF_ENCODING | {"table": (BOOKS[0], torch.ones(2, 8, 4))},
    functional.rvq_decode: OF_DECODING | {"codes": OF_CODES, "codebooks": (BOOKS[0],)},
    functional.rvq_quantize: OF_ENCODING | OF_DECODING,
    functional.code_sums: {"codes": (CODES,), "rows": (MEL[:3], MEL[0])},
    RVQ.encode: {"mel": OF_MEL},
    RVQ: {"mel": OF_MEL},
    RVQ.decode: {"codes": OF_CODES},
    GENERATOR: {"mel": OF_FRAMES},
    BLOCK: {"x": OF_FRAMES},
    muomni_fast.MRF(8, (3,), ((1,),)): {"x": OF_FRAMES},
    lambda x: functional.mrf(x, [BLOCK]): {"x": OF_FRAMES},
}


FITTING = FLOATS | {RVQ: {"mel": MEL}, RVQ.encode: {"mel": MEL}, RVQ.decode: {"codes": CODES}}
FITTING |= {GENERATOR: {"mel": FRAMES}}


@pytest.mark.parametrize("function, shapes", SHAPES.items(), ids=range(len(SHAPES)))
def test_shapes_are_refused_before_anything_is_launched(monkeypatch, function, shapes):
    def begun(op: str, *tensors: Tensor) -> str:
        raise AssertionError(f"{op} was begun")

    for module in (rvq_ops, generator, plan):
        monkeypatch.setattr(module, "choose", begun)
    fitting = FITTING.get(function, {"x": FRAMES})
    with pytest.raises(AssertionError, match="was begun"):
        function(**fitting)
    for name, several in shapes.items():
        for wrong in several:
            with pytest.raises(ValueError, match=rf"^(\w+, )?{name}\b.*: expected .* got "):
                function(**{**fitting, name: wrong})


# Outputs


@pytest.mark.parametrize("function", FITTING, ids=range(len(FITTING)))
def test_outputs_are_memory_of_their_own(function):
    """None is given by the caller, so none can overlap an input."""
    assert "out" not in inspect.signature(function).parameters
    fitting = FITTING[function]
    found = function(**fitting)
    memory = lambda values: {
        value.untyped_storage().data_ptr() for value in values if isinstance(value, Tensor)
    }
    outputs = memory([found] if isinstance(found, Tensor) else vars(found).values())
    assert outputs and not outputs & memory(fitting.values())
