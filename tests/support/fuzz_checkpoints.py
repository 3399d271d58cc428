"""Broken checkpoints of ours and of HiFi-GAN's code, and what loading one must come to.

A loaded model has exactly the settings and weights that its files hold. Most of the edited
documents get the digest that their content needs, or no edit would come further than the digest.
"""

import copy
import functools
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from muomni_fast import (
    RVQ,
    CheckpointError,
    HiFiGANVocoder,
    MelConfig,
    NeuralVocoder,
    SpeechCodec,
    reference,
)
from muomni_fast.reference.checkpoint import digest_of, save_model
from support.checkpoints import rewrite, weights_of
from support.fuzz import Figures, Limits, fuzz, mutate

# The slowest of 3,000 files took 580 ms, Python allocated 1.0 MiB at most, and the process grew by
# 2 MiB, torch's part included.
LIMITS = Limits(seconds=6.0, bytes_per_byte=64, bytes_besides=2 << 20)
RESIDENT = 32 << 20  # bytes by which the process may grow

SIZES = dict(n_mels=6, upsample_rates=(8,), upsample_kernel_sizes=(16,))
BLOCKS = dict(resblock_kernel_sizes=(3, 5), resblock_dilation_sizes=((1, 2), (3,)))
VOCODER = SIZES | BLOCKS | dict(upsample_initial_channel=8, resblock="2")
MEL = MelConfig(sample_rate=1000, n_fft=64, win_length=64, hop_length=8, n_mels=6, fmax=500.0)
HIFIGAN = {name: value for name, value in VOCODER.items() if name != "n_mels"} | {
    **dict(num_mels=6, hop_size=8, sampling_rate=1000, n_fft=64, win_size=64, fmin=0, fmax=None),
    **dict(batch_size=16, dist_config={"dist_backend": "nccl", "world_size": 1}),
}
NUMBERS = (0, 1, 2, -1, 3, 255, 1.5, 1e308, 4096, 10**5, 2**24, 10**9, 2**31, 2**63, 10**30, 1e-300)
VALUES = (
    *NUMBERS,
    *(None, True, False, "", "5", "1", "\ud800", "a\0b", "../rvq.json", "/dev/zero", "x" * 10**5),
    *([], {}, [1], [[1]], [1, [2.5]], {"a": None}, [1] * 10**4, [[1] * 300] * 30),
    *(float("nan"), float("inf"), 10**400),
)
TEXTS = tuple(
    text.encode()
    for text in ("[" * 10**5, '{"a":' * 10**5, "[]", "{}", "null", '"a"', "7", "", "9" * 5000)
)


def fuzz_checkpoints(files: int, seed: int, folder: Path) -> Figures:
    """Load broken checkpoints; arguments as of `fuzz`."""
    torch.manual_seed(0)
    for name, model in (
        ("rvq", RVQ(2, 5, 4, n_mels=6)),
        ("vocoder", HiFiGANVocoder(**VOCODER, weight_norm=True)),
    ):
        save_model(folder / f"{name}.json", name, model, MEL, step=3, frames_per_code=2)
    samples = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".json"}
    for name in ("rvq", "vocoder"):
        samples[f"{name}.safetensors"] = weights_of(folder / f"{name}.json").read_bytes()
    published = {"generator": HiFiGANVocoder(**VOCODER, weight_norm=True).state_dict(), "steps": 7}
    for name, zipped in (("generator.pt", True), ("old.pt", False)):
        buffer = io.BytesIO()
        torch.save(published, buffer, _use_new_zipfile_serialization=zipped)
        samples[name] = buffer.getvalue()
    samples["config.json"] = json.dumps(HIFIGAN | {"fmax": 500}).encode()
    (folder / "whole").mkdir()
    for name, content in samples.items():
        (folder / "whole" / name).write_bytes(content)
    return fuzz(samples, _read, LIMITS, files, seed, folder, change)


def change(content: bytes, other: bytes, random: np.random.Generator) -> bytes:
    """What `mutate` makes of a file, or other weights; of JSON mostly other values and keys."""
    choice = random.integers(8)
    if content[:1] != b"{" and choice > 3:
        weights = bytearray(content)
        for at in random.integers(len(content) // 2, len(content), random.integers(1, 4)):
            weights[at] ^= 1 << random.integers(8)
        if choice == 7:
            weights[at : at + 8] = b"\xff" * 8  # not a number, in one place at least
        return bytes(weights)
    if content[:1] != b"{" or choice == 0:
        return mutate(content, other, random)
    if choice == 1:
        return TEXTS[random.integers(len(TEXTS))]
    document = json.loads(content)
    for _ in range(random.integers(1, 3)):
        _edit(document, random)
    if "digest" in document and random.integers(4):
        document["digest"] = digest_of(document)
    text = json.dumps(document, indent=2 if random.integers(2) else None)
    if choice == 2:
        keys = [*re.finditer(r'"\w+": ', text)]
        key = keys[random.integers(len(keys))]
        text = text[: key.start()] + key.group() + "null, " + text[key.start() :]
    return text.encode()


def _edit(document: dict[str, Any], random: np.random.Generator) -> None:
    """Replace, remove, repeat or add a value somewhere in a document."""
    places = _places(document)
    at, key = places[random.integers(len(places))]
    value = copy.deepcopy(VALUES[random.integers(len(VALUES))])
    choice = random.integers(7)
    if choice == 0:
        del at[key]
    elif choice == 1:
        at[key] = [at[key], value]
    elif choice == 2 and isinstance(at, dict):
        at[f"{key}_"] = at.pop(key)
    elif choice == 3 and isinstance(at, list):
        at.append(at[key])
    elif choice >= 4 and type(at[key]) in (int, float):
        at[key] += int(random.integers(-2, 3))  # near what it was
    else:
        at[key] = value
    if not document:
        document["format"] = value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Everything in a document: what holds it, and by which key."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    inner = [(value[key], key) for key in keys]
    here = [(value, key) for _, key in inner]
    return here + [p for part, _ in inner if isinstance(part, (dict, list)) for p in _places(part)]


def _read(path: Path) -> bool:
    """Whether a file is loaded; checks the model, or the refusal."""
    before = resident("VmRSS")
    name = re.sub(r"^broken-\d+-", "", path.name)
    try:
        loaded = READERS[name](path)
    except CheckpointError as error:
        assert str(path.parent) in str(error), f"{error!r:.300} names no file"
        loaded = False
    grown = resident("VmHWM") - before
    assert grown <= RESIDENT, f"{path}: took {grown:,} bytes"
    return loaded


def resident(which: str) -> int:
    """Bytes of memory that the process has, or had at most since this was last asked for; where
    the system says so."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    found = re.search(rf"{which}:\s+(\d+) kB", status.read_text())
    Path("/proc/self/clear_refs").write_text("5")  # forget the most that there was
    return int(found.group(1)) * 1024 if found else 0


def _document(path: Path) -> dict[str, Any]:
    """The document of a checkpoint that was loaded: nobody edited it and left the digest."""
    document = json.loads(path.read_bytes())
    assert document["digest"] == digest_of(document), f"{path}: was edited"
    return document


def _whole(path: Path, name: str) -> dict[str, Any]:
    """The document that a broken one was made of."""
    return json.loads((path.parent / "whole" / name).read_bytes())


def _require_same(found: dict[str, Any], document: dict[str, Any], besides: str = "") -> None:
    """Every setting of the document is that of the model."""
    plain = json.loads(json.dumps(found))
    for name in document.keys() - {besides}:
        written = document[name]
        if isinstance(plain[name], float):
            written = float(written)  # a float is what an integer becomes there
        assert plain[name] == written, f"{name}: {plain[name]} != {written}"


def _require_equal(found: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    assert found.keys() == weights.keys()
    for name, value in found.items():
        assert torch.isfinite(value).all(), name
        assert torch.equal(value, weights[name]), name


def _rvq(path: Path) -> bool:
    codec = SpeechCodec.from_checkpoints(path)
    document = _document(path)
    _require_same(codec.rvq.config, document["config"])
    _require_same(vars(codec.config), document["mel"])
    assert codec.frames_per_code == document["extra"].get("frames_per_code", 1)
    weights = safetensors.torch.load_file(path.with_name(document["weights"]))
    _require_equal(codec.rvq.state_dict(), weights)
    if document["digest"] == _whole(path, "rvq.json")["digest"]:
        audio = torch.linspace(-0.5, 0.5, 100)[None]
        assert torch.equal(codec.encode(audio), _whole_codes(path.parent))
    return True


@functools.cache
def _whole_codes(folder: Path) -> Tensor:
    codec = SpeechCodec.from_checkpoints(folder / "rvq.json")
    return codec.encode(torch.linspace(-0.5, 0.5, 100)[None])


def _vocoder(path: Path) -> bool:
    vocoder: Any = NeuralVocoder(path)
    document = _document(path)
    _require_same(vocoder.vocoder.config, document["config"], besides="weight_norm")
    _require_same(vars(vocoder.config), document["mel"])
    expected = reference.HiFiGANVocoder(**document["config"])
    expected.load_state_dict(safetensors.torch.load_file(path.with_name(document["weights"])))
    _require_equal(vocoder.vocoder.state_dict(), expected.fold_weight_norm().state_dict())
    return True


def _weights(path: Path) -> bool:
    """As the weights of the whole document, which must notice; then of one with their sha256."""
    kind = "rvq" if "rvq" in path.name else "vocoder"
    document = path.with_name(f"of-{path.name}").with_suffix(".json")
    content, whole = path.read_bytes(), _whole(path, f"{kind}.json")
    document.write_text(json.dumps(whole))
    try:
        rewrite(document, weights=path.name)
        if content != (path.parent / "whole" / f"{kind}.safetensors").read_bytes():
            try:
                READERS[f"{kind}.json"](document)
            except CheckpointError:
                pass
            else:
                raise AssertionError(f"{path}: other weights were loaded")
        rewrite(document, sha256=hashlib.sha256(content).hexdigest())
        return READERS[f"{kind}.json"](document)
    finally:
        document.unlink()


def _foreign(path: Path) -> bool:
    model = HiFiGANVocoder.from_hifigan(path.parent / "whole" / "config.json", path)
    weights = torch.load(path, weights_only=True)["generator"]
    _require_equal(model.state_dict(), _folded(weights))
    return True


def _folded(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights whose norms are folded, w = g * v / ||v||."""
    found = {name: value for name, value in weights.items() if not name.endswith(("_g", "_v"))}
    for name in weights:
        if name.endswith("weight_g"):
            g, v = weights[name].double(), weights[f"{name[:-1]}v"].double()
            norm = v.flatten(1).norm(dim=1).view_as(g)
            found[name.removesuffix("_g")] = (v * (g / norm)).float()
    return found


def _config(path: Path) -> bool:
    mel = MelConfig.from_hifigan(path)
    model = HiFiGANVocoder.from_hifigan(path, path.parent / "whole" / "generator.pt")
    document = json.loads(path.read_bytes())
    same = {ours: document[ours] for ours in VOCODER if ours != "n_mels"}
    _require_same(model.config, same | {"n_mels": document["num_mels"]})
    assert mel.sample_rate == document["sampling_rate"] and mel.fmax == document["fmax"]
    return True


READERS: dict[str, Callable[[Path], bool]] = {
    "rvq.json": _rvq,
    "vocoder.json": _vocoder,
    "rvq.safetensors": _weights,
    "vocoder.safetensors": _weights,
    "generator.pt": _foreign,
    "old.pt": _foreign,
    "config.json": _config,
}
