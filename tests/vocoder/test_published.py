"""Published generators, in every file that people have them in."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import muomni_fast
from muomni_fast import reference
from muomni_fast.reference.errors import CheckpointError

safetensors = pytest.importorskip("safetensors.torch")

CONFIG = {
    "num_mels": 8,
    "hop_size": 8,
    "upsample_rates": [4, 2],
    "upsample_kernel_sizes": [8, 4],
    "upsample_initial_channel": 16,
    "resblock": "1",
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 2], [1, 3]],
}
MEL = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(0))


def generator(leaky_slope: float = 0.1, **changes: object) -> reference.HiFiGANVocoder:
    torch.manual_seed(0)
    arguments = {"n_mels": 8, **CONFIG, **changes}
    del arguments["num_mels"], arguments["hop_size"]
    return reference.HiFiGANVocoder(**arguments, weight_norm=True, leaky_slope=leaky_slope)


def write(folder: Path, **changes: object) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder / "config.json"


def load(folder: Path, content: object, lib=reference, **changes: object):
    torch.save(content, folder / "g_00001000")
    return lib.HiFiGANVocoder.from_hifigan(write(folder, **changes), folder / "g_00001000")


def assert_same(found: torch.nn.Module, expected: reference.HiFiGANVocoder) -> None:
    with torch.no_grad():
        torch.testing.assert_close(found(MEL), expected(MEL), rtol=1e-4, atol=1e-6)


PLACES = {
    "under generator": lambda state: {"generator": state},
    "alone": lambda state: state,
    "under model": lambda state: {"model": state, "optimizer": {"lr": 0.1}, "step": 3},
    "under state_dict": lambda state: {"state_dict": state, "epoch": 1},
    "two deep": lambda state: {"model": {"generator": state}},
    "saved while compiled": lambda state: {
        "generator": {f"_orig_mod.{name}": value for name, value in state.items()}
    },
    "saved by DistributedDataParallel": lambda state: {
        "model": {f"module.{name}": value for name, value in state.items()}
    },
}


@pytest.mark.parametrize("lib", [reference, muomni_fast], ids=["reference", "fast"])
@pytest.mark.parametrize("place", PLACES)
def test_state_dicts_wherever_they_are(tmp_path, lib, place):
    model = generator()
    assert_same(load(tmp_path, PLACES[place](model.state_dict()), lib), model)


@pytest.mark.parametrize("folded", [False, True])
def test_safetensors(tmp_path, folded):
    model = generator()
    if folded:
        model.fold_weight_norm()
    path = tmp_path / "model.safetensors"
    safetensors.save_file(model.state_dict(), path)
    assert_same(reference.HiFiGANVocoder.from_hifigan(write(tmp_path), path), model)
    content = path.read_bytes()
    for damaged in (content[:-1], content[: len(content) // 2], b"\x80", b""):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
            reference.HiFiGANVocoder.from_hifigan(write(tmp_path), path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(tmp_path, dtype):
    model = generator().fold_weight_norm().to(dtype)
    found = load(tmp_path, {"generator": model.state_dict()})
    assert all(p.dtype == torch.float32 for p in found.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value.float())
    with pytest.raises(CheckpointError, match="dtypes differ: conv_post.bias: torch.float64"):
        load(tmp_path, {"generator": model.double().state_dict()})


@pytest.mark.parametrize("resblock", ["1", "2", 1, 2])
def test_resblocks_named_by_numbers(tmp_path, resblock):
    model = generator(resblock=str(resblock))
    assert_same(load(tmp_path, model.state_dict(), resblock=resblock), model)


@pytest.mark.parametrize("wrong", [3, "3", True, None, 1.5, [1]])
def test_resblocks_of_no_kind(tmp_path, wrong):
    with pytest.raises(CheckpointError, match=r'config.json: resblock: expected "1" or "2", got'):
        load(tmp_path, generator().state_dict(), resblock=wrong)


@pytest.mark.parametrize("key", ["leaky_slope", "leaky_relu_slope"])
def test_a_slope_that_a_config_states(tmp_path, key):
    model = generator(leaky_slope=0.2)
    found = load(tmp_path, model.state_dict(), **{key: 0.2})
    assert found.leaky_slope == found.config["leaky_slope"] == 0.2
    assert_same(found, model)
    with pytest.raises(CheckpointError, match="leaky_slope: expected 0 <= leaky_slope < 1, got 1"):
        load(tmp_path, model.state_dict(), **{key: 1})


def test_options_that_a_config_states(tmp_path):
    model = generator(conv_post_bias=False, final=None)
    found = load(tmp_path, model.state_dict(), conv_post_bias=False, final=None)
    assert found.final is None and found.conv_post.bias is None
    assert_same(found, model)
    with pytest.raises(CheckpointError, match=r"Missing key\(s\).*conv_post\.bias"):
        load(tmp_path, model.state_dict(), final=None)
    with pytest.raises(
        CheckpointError, match=r'config\.json: final: expected "tanh", "clamp" or N'
    ):
        load(tmp_path, model.state_dict(), final="sine")


@pytest.mark.parametrize("whole", [True, False])
def test_discriminators_are_named_as_such(tmp_path, whole):
    mpd = reference.MultiPeriodDiscriminator(channels_scale=0.05).state_dict()
    content = {"mpd": mpd, "msd": {}, "optim_g": {}, "steps": 1} if whole else mpd
    with pytest.raises(CheckpointError, match=r"g_00001000: .* got discriminators \(the generator"):
        load(tmp_path, content)


@pytest.mark.parametrize("content", [{}, [], 3, {"generator": {}}, Tensor([1])])
def test_what_holds_no_generator(tmp_path, content):
    with pytest.raises(CheckpointError, match="g_00001000: expected a generator's state dict, "):
        load(tmp_path, content)
