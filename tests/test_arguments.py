"""Tensors that no function here computes with are refused, and the error names the argument."""

import pytest
import torch
from torch import Tensor

import muomni_fast
from muomni_fast import functional, reference
from muomni_fast.reference.rvq import quantizer

BOOKS, WEIGHT, BIAS = torch.randn(2, 8, 4), torch.randn(4, 6), torch.randn(4)
MEL, CODES, AUDIO = torch.randn(5, 6), torch.randint(8, (5, 2)), torch.randn(1, 600)
VOCODER = {"n_mels": 8, "upsample_rates": (4, 2), "upsample_kernel_sizes": (8, 4)}
FRAMES = torch.randn(1, 8, 5)

FLOATS = {  # function -> its floating point arguments, in order
    quantizer.rvq_encode: {"mel": MEL, "codebooks": BOOKS, "proj_in_weight": WEIGHT}
    | {"proj_in_bias": BIAS},
    quantizer.rvq_decode: {"codes": CODES, "codebooks": BOOKS, "proj_out_weight": WEIGHT.T}
    | {"proj_out_bias": torch.randn(6)},
    quantizer.rvq_quantize: {"mel": MEL, "codebooks": BOOKS, "proj_in_weight": WEIGHT}
    | {"proj_in_bias": BIAS, "proj_out_weight": WEIGHT.T, "proj_out_bias": torch.randn(6)},
    functional.code_sums: {"codes": CODES[:, 0], "rows": MEL, "codebook_size": 8},
    reference.log_mel: {"audio": AUDIO, "config": reference.MelConfig()},
}
FLOATS |= {getattr(functional, f.__name__): FLOATS[f] for f in [*FLOATS][:3]}
FLOATS[functional.rvq_encode] = FLOATS[functional.rvq_encode] | {"half_norms": torch.randn(2, 8)}


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
        (codec.encode, "audio", AUDIO),
        (codec.decode, "codes", CODES[None]),
    ]
    for call, name, value in calls:
        call(value)
        for wrong in kinds(value).values():
            with pytest.raises(TypeError, match=f"^{name}: expected "):
                call(wrong)
