"""What `load` says of folders of transformers whose settings or weights do not fit."""

import json

import pytest
import torch
from support.pretrained import edit, rewrite
from torch import Tensor

import muomni_fast
from muomni_fast import CheckpointError

pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

pytestmark = pytest.mark.xdist_group("families")  # in one process: it takes seconds to import

SEMANTIC = "quantizer.semantic_residual_vector_quantizer."


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"upsample_rates": ...}, "upsample_rates: expected an entry, got none"),
        ({"upsample_rates": "x"}, "upsample_rates: expected a list"),
        ({"upsample_rates": [4, 3]}, "upsample_kernel_sizes: .* by an even number"),
        ({"upsample_initial_channel": 2**40}, "upsample_initial_channel: "),
        ({"upsample_initial_channel": 2**16}, "expected at most .* parameters"),
        ({"leaky_relu_slope": 2}, "leaky_relu_slope: expected 0 <= leaky_relu_slope < 1, got 2"),
        ({"leaky_relu_slope": "a"}, "leaky_relu_slope: expected a number"),
        ({"model_in_dim": -1}, "model_in_dim: expected an integer"),
        ({"model_in_dim": 0}, "model_in_dim: expected an integer from 1"),
        ({"normalize_before": 3}, "normalize_before: expected True or False"),
        ({"resblock_dilation_sizes": [[1], []]}, "resblock_dilation_sizes"),
        (
            {"model_type": "bert"},
            "expected the settings of one .*speecht5_hifigan.*got 'bert'",
        ),
        ({"model_type": ["vits"]}, "expected the settings of one generator"),
    ],
)
def test_hostile_settings_of_a_generator(tmp_path, model_of, entries, message):
    model_of("SpeechT5")
    edit(tmp_path, **entries)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        muomni_fast.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        ("EnCodec", {"codebook_size": "16"}, "codebook_size: expected an integer"),
        (
            "EnCodec",
            {"codebook_size": 2**16, "codebook_dim": 2**10},
            "expected at most .* parameters",
        ),
        ("EnCodec", {"target_bandwidths": [1e308]}, "target_bandwidths: expected bits for 1 to"),
        ("EnCodec", {"target_bandwidths": [0]}, "target_bandwidths: expected bits for 1 to"),
        ("EnCodec", {"target_bandwidths": 3}, "target_bandwidths: expected a list"),
        ("EnCodec", {"upsampling_ratios": [0]}, "upsampling_ratios: expected integers"),
        ("EnCodec", {"sampling_rate": -5}, "sampling_rate: expected an integer"),
        ("Mimi", {"num_quantizers": 1}, "num_quantizers: expected more than num_semantic"),
        ("Mimi", {"hidden_size": True}, "hidden_size: expected an integer"),
        ("Mimi", {"vector_quantization_hidden_dimension": 8}, "n_mels"),
    ],
)
def test_hostile_settings_of_a_quantizer(tmp_path, model_of, name, entries, message):
    model_of(name)
    edit(tmp_path, **entries)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        muomni_fast.load(tmp_path, "semantic" if name == "Mimi" else None)


def _cut(state: dict[str, Tensor], name: str) -> None:
    state[name] = state[name][..., :-1].contiguous()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("SpeechT5", lambda s: s.pop("conv_pre.bias"), r"Missing.*conv_pre\.bias"),
        ("SpeechT5", lambda s: s.pop("upsampler.1.bias"), r"\(upsampler: ups\).*ups\.1\.bias"),
        ("SpeechT5", lambda s: _cut(s, "upsampler.0.weight"), r"size mismatch for ups\.0\.weight"),
        ("SpeechT5", lambda s: s.update({"upsampler.7.x": torch.ones(1)}), r"Unexp.*ups\.7\.x"),
        ("EnCodec", lambda s: s.pop("quantizer.layers.2.codebook.embed"), r"codebooks\.2\.weight"),
        ("EnCodec", lambda s: _cut(s, "quantizer.layers.2.codebook.embed"), r"size mismatch"),
        (
            "EnCodec",
            lambda s: s.update({"quantizer.layers.1.codebook.other": torch.ones(1)}),
            r"Unexpected.*layers\.1\.codebook\.other",
        ),
        (
            "EnCodec",
            lambda s: (
                s.update({"quantizer.quantizers.0.project_in.weight": torch.ones(1)})
                or [s.pop(name) for name in [*s] if ".layers." in name and "quantizer" in name]
            ),
            "projections of its own: not yet",
        ),
        ("Mimi", lambda s: s.pop(f"{SEMANTIC}layers.0.codebook.cluster_usage"), "lacks quantizer"),
        ("Mimi", lambda s: _cut(s, f"{SEMANTIC}layers.0.codebook.cluster_usage"), r"\(K, D\) and"),
        (
            "Mimi",
            lambda s: s.update({f"{SEMANTIC}layers.0.codebook.cluster_usage": torch.ones(1)}),
            r"expected \(K, D\) and \(K,\)",
        ),
        (
            "Mimi",
            lambda s: s.update(
                {f"{SEMANTIC}layers.0.codebook.cluster_usage": torch.ones(16).int()}
            ),
            "expected plain tensors by name.*got .*cluster_usage.*torch.int32",
        ),
        ("Mimi", lambda s: s.pop(f"{SEMANTIC}output_proj.weight"), r"proj_out\.weight"),
        (
            "Mimi",
            lambda s: s.update({f"{SEMANTIC}input_proj.weight": torch.ones(4, 8, 3)}),
            r"proj_in\.weight: expected two dimensions",
        ),
    ],
)
def test_keys_that_do_not_fit_are_named(tmp_path, model_of, name, change, message):
    model_of(name)
    rewrite(tmp_path, change)
    with pytest.raises(CheckpointError, match=rf"(?s)model\.safetensors.*{message}"):
        muomni_fast.load(tmp_path, "semantic" if name == "Mimi" else None)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "weight_map: expected a dictionary"),
        ({"weight_map": {}}, "weight_map: expected names"),
        ({"weight_map": {"upsampler.0.weight": "../a.safetensors"}}, "weight_map: upsampler"),
        ({"weight_map": {"upsampler.0.weight": 7}}, "weight_map: upsampler"),
        ({"weight_map": {"upsampler.0.weight": "absent.safetensors"}}, "No such file"),
        ({"weight_map": {"upsampler.0.weight": "a.safetensors"}}, r"a\.safetensors: lacks upsam"),
    ],
)
def test_an_index_is_not_trusted(tmp_path, model_of, index, message):
    model_of("SpeechT5")
    (tmp_path / "model.safetensors").unlink()
    safetensors.save_file({"other": torch.ones(1)}, tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        muomni_fast.load(tmp_path)


def test_a_generator_needs_its_config(tmp_path, model_of):
    model_of("SpeechT5")
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: expected the settings.*no such file"):
        muomni_fast.load(tmp_path / "model.safetensors")
