"""What a checkpoint's two files may hold: edited, hostile or damaged ones are refused by name."""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.checkpoints import rewrite, rewrite_weights, weights_of

import muomni_fast
from muomni_fast import MelConfig, NeuralVocoder, reference
from muomni_fast.reference import checkpoint
from muomni_fast.reference.errors import CheckpointError
from muomni_fast.reference.vocoder.hifigan import PRESETS

pytest.importorskip("safetensors")

from support.fuzz_checkpoints import fuzz_checkpoints  # noqa: E402


def places(value: Any, place: tuple = ()) -> Iterator[tuple]:
    """Where the values of a document are, from the inside out."""
    inner = {dict: lambda v: v.items(), list: enumerate}.get(type(value))
    for key, part in inner(value) if inner else ():
        yield from places(part, (*place, key))
        yield (*place, key)


def edited(document: Any, place: tuple, change: Callable[[Any, Any], None]) -> Any:
    copied = json.loads(json.dumps(document))
    at = copied
    for key in place[:-1]:
        at = at[key]
    change(at, place[-1])
    return copied


def test_the_digest_covers_all_of_the_document(tmp_path):
    """Every value changed, and every key left out: the vocoder would only sound different."""
    path = tmp_path / "vocoder.json"
    generator = reference.HiFiGANVocoder(upsample_initial_channel=16)
    checkpoint.save_model(path, "vocoder", generator, MelConfig(), step=7, frames_per_code=5)
    document = json.loads(path.read_text())
    tried = 0
    for place in places(document):
        for change in (
            lambda at, key: at.__setitem__(key, not at[key] if at[key] in (0, 1) else 33),
            lambda at, key: at.__delitem__(key),
        ):
            path.write_text(json.dumps(edited(document, place, change)))
            with pytest.raises(CheckpointError, match=r"vocoder\.json: ") as error:
                NeuralVocoder(path)
            tried += 1
            if place[0] not in ("format", "version", "digest") and len(place) > 1:
                assert "edited or damaged" in str(error.value), place
    assert tried > 70
    path.write_text(json.dumps(document | {"note": "hello"}))
    with pytest.raises(CheckpointError, match=r"vocoder\.json: damaged: .*besides \['note'\]"):
        NeuralVocoder(path)


def test_the_digest_is_of_content_not_of_spelling(saved):
    document = json.loads(saved.read_text())
    saved.write_text(json.dumps(dict(reversed(document.items()))))
    assert checkpoint.load_model(saved).extra == {"step": 7}


def test_the_digest_stays_what_it_is():
    """Or no checkpoint written before would load."""
    document = {"b": [1, 0.1, 1e-5, None, True], "a": "\u00e9", "digest": "?"}
    text = b'{"a":"\\u00e9","b":[1,0.1,1e-05,null,true]}'
    assert checkpoint.digest_of(document) == hashlib.sha256(text).hexdigest()


def test_version_1_loads_with_one_warning(saved, caplog):
    rewrite(saved, version=1)
    loaded = checkpoint.load_model(saved, "rvq")
    assert loaded.extra == {"step": 7}
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1 and str(saved) in warnings[0] and "version 1" in warnings[0]
    text = saved.read_text()
    saved.write_text(text.replace('"version": 1', '"version": 1, "digest": "0"'))
    with pytest.raises(CheckpointError, match=r"rvq\.json: damaged: .*besides \['digest'\]"):
        checkpoint.load_model(saved)
    with pytest.raises(CheckpointError, match="expected muomni_fast version 1 to 2, got version 9"):
        rewrite(saved, version=9)
        checkpoint.load_model(saved)


def test_what_json_cannot_hold_is_not_saved(saved):
    before = saved.read_text()
    with pytest.raises(CheckpointError, match=r"rvq\.json: cannot be saved: NaN is not"):
        checkpoint.save_model(saved, "rvq", reference.RVQ(), MelConfig(), loss=float("nan"))
    with pytest.raises(TypeError, match="set"):
        checkpoint.save_model(saved, "rvq", reference.RVQ(), MelConfig(), clips={1})
    assert saved.read_text() == before and len(list(saved.parent.iterdir())) == 2
    checkpoint.save_model(saved, "rvq", reference.RVQ(), MelConfig(), by_epoch={9: 0.5, 10: None})
    assert checkpoint.load_model(saved).extra == {"by_epoch": {"9": 0.5, "10": None}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(version=True), "version: expected an integer.*True"),
        (dict(kind=["rvq"]), r"kind: expected a string, got \['rvq'\]"),
        (dict(kind="a\nb"), "kind: expected"),
        (dict(config=[]), r"config: expected a dictionary, got \[\]"),
        (dict(config={"n_codebooks": 10**5}), "n_codebooks: expected.*1 to 256, got 100000"),
        (dict(config={"n_codebooks": 2**63}), "n_codebooks: expected"),
        (dict(config={"codebook_dim": 10**9}), "codebook_dim = 1000000000.* parameters"),
        (dict(config={"n_codebooks": -2}), "n_codebooks: expected"),
        (dict(config={"bias": 1}), "bias: expected True or False, got 1"),
        (dict(config={"colour": 1}), "colour"),
        (dict(config={"self": 1}), "self"),
        (dict(config={"codebook_size": 64}), r"codebooks.0.weight: \(128, 64\) .* -> \(64, 64\)"),
        (dict(mel=None), "mel: expected a dictionary, got None"),
        (dict(mel={"n_mels": 80.0}), "n_mels: expected an integer.*80.0"),
        (dict(mel={"fmax": 9000.0}), "fmax: expected 0 <= fmin < fmax <= 8000.0 Hz"),
        (dict(mel={"n_mels": 80}), "quantizer has n_mels = 128, but the mel has n_mels = 80"),
        (dict(mel={"hop_length": 0}), "hop_length"),
        (dict(extra=[1]), r"extra: expected a dictionary, got \[1\]"),
        (dict(extra={"frames_per_code": "5"}), "frames_per_code: expected an integer.*'5'"),
        (dict(extra={"frames_per_code": 0}), "frames_per_code: expected an integer.*got 0"),
        (dict(extra={"frames_per_code": None}), "frames_per_code: expected an integer.*None"),
        (dict(extra={"pooling": "sum"}), 'pooling: expected "mean" or "stack", got .sum.'),
        (dict(extra={"pooling": None}), 'pooling: expected "mean" or "stack", got None'),
        (
            dict(extra={"pooling": "stack", "frames_per_code": 5}),
            "n_mels = 128, but frames_per_code = 5 .* have 640",
        ),
        (dict(sha256="0" * 63), "sha256: expected"),
        (dict(sha256="0" * 64), "sha256 is .* but rvq.json says 0000"),
        (dict(weights="../a.safetensors"), r"weights: expected .*'\.\./a\.safetensors'"),
        (dict(weights="/dev/zero"), "weights: expected"),
        (dict(weights="\0.safetensors"), "weights: expected"),
        (dict(weights="\ud800.safetensors"), "not a file's name"),
        (dict(weights=7), "weights: expected a string, got 7"),
        (dict(weights="none.safetensors"), "none.safetensors: No such file"),
    ],
)
def test_wrong_values_of_a_document_are_named(saved, changes, message):
    """Also where its digest is right: somebody wrote it so."""
    rewrite(saved, **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        muomni_fast.SpeechCodec.from_checkpoints(saved)
    assert str(saved.parent) in str(error.value) and len(str(error.value)) < 600


def test_fractions_and_signs_in_a_vocoders_config(tmp_path):
    path = tmp_path / "vocoder.json"
    generator = reference.HiFiGANVocoder(upsample_initial_channel=16)
    checkpoint.save_model(path, "vocoder", generator, MelConfig())
    whole = json.loads(path.read_text())["config"]
    for changes in (
        {"upsample_rates": [-8, -8, 4, 1]},
        {"resblock_dilation_sizes": [[1, 1.5], [1, 2], [1, 2]]},
        {"upsample_rates": [8, 8, 2, None]},
        {"resblock": 1},
        {"resblock_kernel_sizes": "357"},
        {"upsample_initial_channel": 1 << 60},
    ):
        rewrite(path, config=whole | changes)
        with pytest.raises(CheckpointError, match=rf"vocoder\.json: .*{[*changes][0]}.*expected"):
            NeuralVocoder(path)


# Weights files


def test_weights_that_are_not_finite_do_not_load(saved):
    """safetensors does not mind them."""
    state = reference.RVQ().state_dict()
    for value in (torch.nan, torch.inf):
        state["codebooks.1.weight"][3, 3] = value
        rewrite_weights(saved, state)
        with pytest.raises(CheckpointError, match=r"rvq\.json.*codebooks\.1\.weight .*not finite"):
            muomni_fast.SpeechCodec.from_checkpoints(saved)


def test_keys_of_a_file_that_do_not_fit_are_all_listed(saved):
    state = reference.RVQ().state_dict()
    state["extra.thing"] = state.pop("proj_in.weight")
    state["codebooks.0.weight"] = torch.zeros(3, 3)
    rewrite_weights(saved, state)
    with pytest.raises(CheckpointError, match=r"\.safetensors: does not fit the model") as error:
        muomni_fast.SpeechCodec.from_checkpoints(saved)
    for part in (
        "lacks proj_in.weight",
        "has 'extra.thing' besides",
        "codebooks.0.weight: (3, 3) torch.float32 -> (128, 64) torch.float32",
    ):
        assert part in str(error.value)
    half = {name: value.half() for name, value in reference.RVQ().state_dict().items()}
    rewrite_weights(saved, half)
    with pytest.raises(CheckpointError, match="does not fit the model") as error:
        muomni_fast.SpeechCodec.from_checkpoints(saved)
    for name, value in half.items():
        shape = tuple(value.shape)
        assert f"{name}: {shape} torch.float16 -> {shape} torch.float32" in str(error.value)


def test_weights_larger_than_the_model_are_refused_unread(saved):
    """A terabyte that takes no place on the disk; nor may it take any in memory."""
    weights = weights_of(saved)
    size = weights.stat().st_size
    os.truncate(weights, 1 << 40)
    with pytest.raises(CheckpointError, match=rf"expected {size:,} bytes, got 1,099,511,627,776"):
        muomni_fast.SpeechCodec.from_checkpoints(saved)
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}})
    weights.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    os.truncate(weights, 8 + len(header) + (1 << 40))
    with pytest.raises(CheckpointError, match="has 'a' besides"):
        muomni_fast.SpeechCodec.from_checkpoints(saved)


def test_models_larger_than_their_file_are_not_made(saved, tmp_path):
    """Whatever the config says; the limit is the file's, not the one of all models."""
    config = json.loads(saved.read_text())["config"]
    rewrite(saved, config=config | {"codebook_size": 1 << 20})
    most = 1_000_000 + sum(value.nbytes for value in reference.RVQ().state_dict().values())
    message = rf"rvq\.json: .* at most {most:,} parameters, got 134"
    with pytest.raises(CheckpointError, match=message):
        muomni_fast.SpeechCodec.from_checkpoints(saved)
    hifigan = {"num_mels": 80, "hop_size": 256, **PRESETS["v1"], "upsample_initial_channel": 4096}
    (tmp_path / "config.json").write_text(json.dumps(hifigan))
    torch.save({"generator": reference.HiFiGANVocoder().state_dict()}, tmp_path / "generator.pt")
    with pytest.raises(CheckpointError, match=r"config\.json: .* parameters, got 87"):
        muomni_fast.HiFiGANVocoder.from_hifigan(tmp_path / "config.json", tmp_path / "generator.pt")
    reference.RVQ(codebook_size=1 << 14)  # others are not limited by what was loaded


def test_files_that_are_no_safetensors_are_refused(saved):
    for content in (b"", b"rubbish", b"\x02" + bytes(7) + b"{}" + bytes(9)):
        weights_of(saved).write_bytes(content)
        rewrite(saved, sha256=hashlib.sha256(content).hexdigest())
        for load in (checkpoint.load_model, muomni_fast.SpeechCodec.from_checkpoints):
            with pytest.raises(CheckpointError, match=r"rvq-.*\.safetensors: "):
                load(saved)


def test_broken_checkpoints_are_loaded_right_or_refused(tmp_path):
    """Twenty of every kind; `make fuzz` loads more."""
    figures = fuzz_checkpoints(140, 0, tmp_path)
    assert figures.files == 140 and figures.read > 25 and figures.refused > 60, str(figures)


def nan_weights(model: reference.RVQ) -> reference.RVQ:
    with torch.no_grad():
        model.proj_in.weight[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("name", "kind", "change", "extra", "message"),
    [
        ("rvq.json", "rvq", nan_weights, {}, "proj_in.weight holds a value that is not finite"),
        ("rvq.json", "my kind", lambda model: model, {}, "kind: expected"),
        ("rvq.json", "rvq", lambda model: model, {"x": [1] * 1_500_000}, "bytes of JSON, got"),
        ("r" * 195 + ".json", "rvq", lambda model: model, {}, "weights: expected"),
    ],
)
def test_what_would_not_load_does_not_replace_what_does(
    tmp_path, name, kind, change, extra, message
):
    path = tmp_path / name
    model = reference.RVQ(2, 8, 4, 8)
    if len(name) < 20:
        checkpoint.save_model(path, "rvq", model, MelConfig(n_mels=8))
    with pytest.raises(CheckpointError, match=f"cannot be saved: .*{message}"):
        checkpoint.save_model(
            path, kind, change(reference.RVQ(2, 8, 4, 8)), MelConfig(n_mels=8), **extra
        )
    if len(name) < 20:
        found, _ = checkpoint.restore(reference.RVQ, path, "rvq")
        assert torch.equal(found.stacked_codebooks(), model.stacked_codebooks())


def test_names_with_brackets_are_names(tmp_path):
    for name in ("a1.json", "a*.json", "r[1].json"):
        for _ in range(2):
            checkpoint.save_model(
                tmp_path / name, "rvq", reference.RVQ(2, 8, 4, 8), MelConfig(n_mels=8)
            )
    assert len([*tmp_path.iterdir()]) == 6
    for name in ("a1.json", "a*.json", "r[1].json"):
        checkpoint.restore(reference.RVQ, tmp_path / name, "rvq")


def test_other_dtypes_are_named_under_any_name(tmp_path):
    model = reference.RVQ(2, 8, 4, 8)
    for front in ("", "module.", "_orig_mod."):
        state = {f"{front}{name}": value.double() for name, value in model.state_dict().items()}
        with pytest.raises(CheckpointError, match="dtypes differ: .*torch.float64 -> torch.flo"):
            checkpoint.load_state(reference.RVQ(2, 8, 4, 8), state, "it")
