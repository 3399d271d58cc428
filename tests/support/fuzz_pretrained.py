"""Broken folders of transformers' models, and what loading one must come to.

A loaded part has the settings and weights that its folder holds. Files are made without
transformers, under its names.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import muomni_fast
from muomni_fast import RVQ, CheckpointError, HiFiGANVocoder
from support.fuzz import Figures, Limits, fuzz
from support.fuzz_checkpoints import change

LIMITS = Limits(seconds=6.0, bytes_per_byte=64, bytes_besides=2 << 20)
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

GENERATOR = dict(upsample_rates=[8], upsample_kernel_sizes=[16], upsample_initial_channel=8)
GENERATOR |= dict(resblock_kernel_sizes=[3, 5], resblock_dilation_sizes=[[1, 2], [3]])
VITS = GENERATOR | dict(model_type="vits", flow_size=6, leaky_relu_slope=0.1)
ENCODEC = dict(model_type="encodec", codebook_size=5, codebook_dim=4, sampling_rate=24000)
ENCODEC |= dict(upsampling_ratios=[8, 5, 4, 2], target_bandwidths=[0.3, 0.5])
MIMI = dict(model_type="mimi", codebook_size=5, codebook_dim=4, hidden_size=6, num_quantizers=3)
MIMI |= dict(vector_quantization_hidden_dimension=4, num_semantic_quantizers=1)
ACOUSTIC = "codec_model.quantizer.acoustic_residual_vector_quantizer."


def _vits() -> dict[str, Tensor]:
    model = HiFiGANVocoder(6, (8,), (16,), 8, "1", (3, 5), ((1, 2), (3,)), conv_post_bias=False)
    named = {re.sub(r"^ups", "upsampler", name): v for name, v in model.state_dict().items()}
    return {f"decoder.{name}": value for name, value in named.items()} | {"x": torch.ones(3)}


def _encodec() -> dict[str, Tensor]:
    books = {f"quantizer.layers.{q}.codebook.embed": torch.randn(5, 4) for q in range(2)}
    return books | {"quantizer.layers.0.codebook.inited": torch.ones(1)}


def _mimi() -> dict[str, Tensor]:
    found = {f"{ACOUSTIC}input_proj.weight": torch.randn(4, 6, 1)}
    found[f"{ACOUSTIC}output_proj.weight"] = torch.randn(6, 4, 1)
    for q in range(2):
        found[f"{ACOUSTIC}layers.{q}.codebook.embed_sum"] = torch.randn(5, 4)
        found[f"{ACOUSTIC}layers.{q}.codebook.cluster_usage"] = torch.rand(5) + 0.5
    return found


# By name: the config, and the weights.
FOLDERS: dict[str, tuple[dict[str, Any], Callable[[], dict[str, Tensor]]]] = {
    "vits": (VITS, _vits),
    "encodec": (ENCODEC, _encodec),
    "csm": ({"model_type": "csm", "codec_config": MIMI}, _mimi),
}


def fuzz_pretrained(files: int, seed: int, folder: Path) -> Figures:
    """Load broken folders; arguments as of `fuzz`."""
    torch.manual_seed(0)
    samples = {}
    for name, (config, weights) in FOLDERS.items():
        whole = folder / "whole" / name
        whole.mkdir(parents=True)
        state = weights()
        (whole / CONFIG).write_text(json.dumps(config))
        safetensors.torch.save_file(state, whole / WEIGHTS)
        (whole / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(state, WEIGHTS)}))
        samples |= {f"{name}-{file}": (whole / file).read_bytes() for file in (CONFIG, WEIGHTS)}
    samples[f"vits-{INDEX}"] = (folder / "whole" / "vits" / INDEX).read_bytes()
    return fuzz(samples, _read, LIMITS, files, seed, folder, change)


def _read(path: Path) -> bool:
    """Whether the folder in which a file is the broken one is loaded."""
    name, file = re.sub(r"^broken-\d+-", "", path.name).split("-", 1)
    place = path.with_name("place")
    shutil.copytree(path.parent / "whole" / name, place)
    try:
        shutil.copy(path, place / file)
        model: Any = muomni_fast.load(place / file if file == INDEX else place)
        _require_right(model, place)
        return True
    except CheckpointError as error:
        assert str(place) in str(error), f"{error!r:.300} names no file"
        return False
    finally:
        shutil.rmtree(place)


def _require_right(model: Any, place: Path) -> None:
    """Weights and settings of a model are those of its folder."""
    state = safetensors.torch.load_file(place / WEIGHTS)
    own = model.state_dict()
    assert all(value.isfinite().all() for value in own.values())
    if isinstance(model, HiFiGANVocoder):
        config = json.loads((place / CONFIG).read_bytes())
        plain = json.loads(json.dumps(model.config))
        for name in GENERATOR:
            assert plain[name] == config[name], name
        assert plain["leaky_slope"] == config["leaky_relu_slope"]
        for name, value in own.items():
            theirs = re.sub(r"^ups", "upsampler", name)
            assert torch.equal(value, state[f"decoder.{theirs}"].float()), name
        return
    assert isinstance(model, RVQ)
    for q, codebook in enumerate(model.codebooks):
        prefix = next(n for n in state if n.endswith(f"layers.{q}.codebook.{_kept(model)}"))
        expected = state[prefix].float()
        if model.proj_in is not None:
            usage = state[prefix.replace("embed_sum", "cluster_usage")].float()
            expected = expected / usage.clamp(min=1e-5)[:, None]
        assert torch.equal(codebook.weight, expected), q
    if model.proj_in is not None:
        assert torch.equal(model.proj_in.weight, state[f"{ACOUSTIC}input_proj.weight"][..., 0])


def _kept(model: RVQ) -> str:
    return "embed" if model.proj_in is None else "embed_sum"
