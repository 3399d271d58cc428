"""Broken folders of transformers' models, and what loading one must come to.

A loaded part has the settings and weights that its folder holds. Files are made without
transformers, under its names.
"""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

import muomni_fast
from muomni_fast import RVQ, CheckpointError, HiFiGANVocoder
from support.fuzz import Figures, Limits, fuzz
from support.fuzz_checkpoints import change, resident

LIMITS = Limits(seconds=6.0, bytes_per_byte=64, bytes_besides=2 << 20)
# Bytes by which the process may grow, torch's tensors included: codebooks that a file cannot fill
# would take more.
RESIDENT = 64 << 20
PICKLED = "pytorch_model.bin"
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
        samples[f"{name}-{PICKLED}"] = _saved(state)
    samples[f"vits-{INDEX}"] = (folder / "whole" / "vits" / INDEX).read_bytes()
    return fuzz(samples, _read, LIMITS, files, seed, folder, _change)


def _saved(state: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _change(content: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """What `change` makes of a file; of weights, often other tensors or names instead."""
    pickled = content[:2] == b"PK"
    if content[:1] == b"{" or random.integers(2):
        return change(content, other, random)
    whole = torch.load(io.BytesIO(content)) if pickled else safetensors.torch.load(content)
    state = dict(whole)
    for _ in range(random.integers(1, 3)):
        name = [*whole][random.integers(len(whole))]
        if random.integers(2):
            added = NAMES[random.integers(len(NAMES))]
            prefix = name[: name.find(".") + 1] if random.integers(2) else ""
            state[prefix + added] = torch.ones(2, 2)
        else:
            odd = TENSORS if pickled else TENSORS[:PLAIN]
            state |= odd[random.integers(len(odd))](name, whole[name])
    if pickled:
        return _saved(state)
    return safetensors.torch.save({name: value.contiguous() for name, value in state.items()})


NAMES = (  # that look like a part's, and what parts have that are not known
    *("noise_convs.0.weight", "m_source.l_linear.weight", "cond.weight", "mean", "scale", "x"),
    *("quantizers.0.project_in.weight", "quantizers.0.codebook.embed", "layers.0.codebook.other"),
    *("codebooks.7.x", "layers.255.codebook.embed", "upsampler.0.weight", "ups.0.weight"),
    *("quantizers.0.in_proj." * 3000 + "\n", "layers.0." * 5000, "y" * 10**5, "\n", "."),
)
TENSORS: tuple[Callable[[str, Tensor], dict[str, Tensor]], ...] = (
    lambda name, value: {name: value.to(torch.float8_e4m3fn)},
    lambda name, value: {name: value.double()},
    lambda name, value: {name: value.half()},
    lambda name, value: {name: value.int()},
    lambda name, value: {name: value[:0]},
    lambda name, value: {name: value[None]},
    lambda name, value: {name: torch.ones(1024, 64)},
    # What torch alone saves:
    lambda name, value: {name: torch.empty(1 << 16, 1 << 14, device="meta")},
    lambda name, value: {name: value.expand(1 << 30, *value.shape)},
    lambda name, value: {name: value.to_sparse()},
    lambda name, value: {name: value.to(torch.complex64)},
    lambda name, value: {name.replace(".0.", f".{q}."): torch.ones(1) for q in range(200)},
    lambda name, value: dict.fromkeys(
        (name.replace(".0.", f".{q}.") for q in range(200)), torch.ones(1024, 128).half()
    ),
)
PLAIN = 7  # of these, which safetensors has too


def _read(path: Path) -> bool:
    """Whether the folder in which a file is the broken one is loaded."""
    name, file = re.sub(r"^broken-\d+-", "", path.name).split("-", 1)
    place = path.with_name("place")
    shutil.copytree(path.parent / "whole" / name, place)
    before = resident("VmRSS")
    try:
        if file == PICKLED:
            (place / WEIGHTS).unlink()
            (place / INDEX).unlink()
        shutil.copy(path, place / file)
        model: Any = muomni_fast.load(place / file if file == INDEX else place)
        grown = resident("VmHWM") - before
        _require_right(model, place)
        loaded = True
    except CheckpointError as error:
        assert str(place) in str(error), f"{error!r:.300} names no file"
        assert len(str(error)) < 100_000 + 4 * path.stat().st_size
        grown, loaded = resident("VmHWM") - before, False
    finally:
        shutil.rmtree(place)
    assert grown <= RESIDENT, f"{path}: took {grown:,} bytes"
    return loaded


def _require_right(model: Any, place: Path) -> None:
    """Weights and settings of a model are those of its folder."""
    pickled = not (place / WEIGHTS).exists()
    state = torch.load(place / PICKLED) if pickled else safetensors.torch.load_file(place / WEIGHTS)
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
