"""HiFi-GAN's own files: what is wrong in them is named, and nothing else is loaded."""

import json

import pytest
import torch

import muomni_fast
from muomni_fast import MelConfig, reference
from muomni_fast.reference.errors import CheckpointError


@pytest.fixture(params=[reference, muomni_fast], ids=["reference", "fast"])
def lib(request: pytest.FixtureRequest):
    return request.param


SMALL_CONFIG = {
    **{"num_mels": 4, "hop_size": 2, "sampling_rate": 8000, "n_fft": 64, "win_size": 64},
    **{"fmin": 0, "fmax": 4000, "upsample_rates": [2], "upsample_kernel_sizes": [4]},
    **{"upsample_initial_channel": 4, "resblock": "2", "resblock_kernel_sizes": [3]},
    "resblock_dilation_sizes": [[1, 2]],
}


@pytest.fixture
def published(tmp_path):
    """Config and weights of a small generator, as HiFi-GAN's code leaves them."""
    model = reference.HiFiGANVocoder(4, (2,), (4,), 4, "2", (3,), ((1, 2),), weight_norm=True)
    (tmp_path / "config.json").write_text(json.dumps(SMALL_CONFIG))
    torch.save({"generator": model.state_dict()}, tmp_path / "generator.pt")
    return tmp_path / "config.json", tmp_path / "generator.pt"


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("num_mels", None),
        ("num_mels", 4.0),
        ("hop_size", None),
        ("hop_size", "2"),
        ("upsample_rates", [-2]),
        ("upsample_rates", None),
        ("upsample_kernel_sizes", [4.0]),
        ("upsample_initial_channel", 2**63),
        ("resblock", None),
        ("resblock_kernel_sizes", [[3]]),
        ("resblock_dilation_sizes", [[1, 1.5]]),
        ("resblock_dilation_sizes", [1, 2]),
        ("sampling_rate", True),
        ("n_fft", 10**12),
        ("fmin", -1),
        ("fmax", None),
        ("fmax", 4001),
    ],
)
def test_wrong_values_of_a_hifigan_config_are_named(lib, published, name, wrong):
    config, weights = published
    ours = {"num_mels": "n_mels", "hop_size": "hop|upsample_rates", "sampling_rate": "sample_rate"}
    config.write_text(json.dumps(SMALL_CONFIG | {name: wrong}))
    with pytest.raises(CheckpointError, match=rf"config\.json: .*({ours.get(name, name)})"):
        MelConfig.from_hifigan(config)
        lib.HiFiGANVocoder.from_hifigan(config, weights)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_damaged_hifigan_weights_are_one_error(lib, published, zipped):
    config, weights = published
    state = torch.load(weights, weights_only=True)
    torch.save(state, weights, _use_new_zipfile_serialization=zipped)
    whole = weights.read_bytes()
    lib.HiFiGANVocoder.from_hifigan(config, weights)
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 100):
        weights.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"generator\.pt: ."):
            lib.HiFiGANVocoder.from_hifigan(config, weights)
    for wrong, message in (
        ({"conv_pre.weight_v": None}, "expected plain tensors by name, got a NoneType"),
        ({7: torch.zeros(1)}, "expected plain tensors by name, got a Tensor by 7"),
        ({"conv_pre.bias": torch.zeros(1).expand(1 << 40)}, "expected plain tensors"),
        ({"conv_pre.bias": torch.zeros(4).to_sparse()}, "expected plain tensors"),
        ({"conv_pre.bias": torch.full((4,), torch.nan)}, "conv_pre.bias .*not finite"),
        ({"conv_pre.weight_v": torch.zeros(4, 4, 7)}, "conv_pre.weight_g, weight_v: .*not finite"),
    ):
        torch.save({"generator": state["generator"] | wrong}, weights)
        with pytest.raises(CheckpointError, match=rf"(?s)generator\.pt: .*{message}"):
            lib.HiFiGANVocoder.from_hifigan(config, weights)
