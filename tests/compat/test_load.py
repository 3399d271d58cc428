"""What `load` makes of folders that transformers has saved, against transformers' own modules."""

import copy
import json
import logging
from typing import Any

import pytest
import torch
from support.families import MODELS, part_of, snr
from support.pretrained import edit, rewrite
from support.whole_models import WHOLE

import muomni_fast
from muomni_fast import RVQ, CheckpointError, HiFiGANVocoder

pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

# All in one process: importing transformers takes seconds.
pytestmark = pytest.mark.xdist_group("families")

VOCODERS = ["SpeechT5", "FastSpeech2Conformer", "SeamlessM4T", "SeamlessM4T v2", "VITS"]


@torch.no_grad()
def same_audio(found: Any, part: Any) -> bool:
    assert type(found) is HiFiGANVocoder and not found.training
    torch.manual_seed(1)
    mel = torch.randn(2, part.conv_pre.in_channels, 12)
    frames_first = hasattr(part, "mean")  # SpeechT5's, and FastSpeech2Conformer's
    theirs = part(mel.transpose(1, 2) if frames_first else mel).reshape(2, -1)
    ours = found(mel)
    return ours.shape == theirs.shape and snr(ours, theirs) >= 100


@torch.no_grad()
def same_codes(found: Any, part: Any, width: int) -> bool:
    """Codes and what they decode to, of a quantizer of theirs."""
    assert type(found) is RVQ and not found.training
    torch.manual_seed(1)
    x = torch.randn(2, width, 30)
    theirs, ours = part.encode(x), found.encode(x.transpose(1, 2))
    decoded = part.decode(theirs.transpose(0, 1) if hasattr(part, "input_proj") else theirs)
    assert torch.equal(ours.permute(2, 0, 1), theirs)
    torch.testing.assert_close(found.decode(ours).transpose(1, 2), decoded, atol=1e-5, rtol=1e-5)
    return True


@pytest.mark.parametrize("name", VOCODERS)
def test_vocoders(tmp_path, model_of, name):
    part = part_of(model_of(name), MODELS[name])
    assert same_audio(muomni_fast.load(tmp_path), part)
    file = tmp_path / "model.safetensors"
    assert same_audio(muomni_fast.load(file), part)
    assert same_audio(muomni_fast.load(tmp_path / "config.json"), part)
    if name in ("SpeechT5", "VITS"):  # a config that states the class alone
        edit(tmp_path, model_type=...)
        assert same_audio(muomni_fast.load(tmp_path), part)
    if "Seamless" in name:  # as it lies in the whole model
        rewrite(tmp_path, lambda state: {f"vocoder.{n}": value for n, value in state.items()})
        assert same_audio(muomni_fast.load(tmp_path), part)


def test_mels_are_normalised_outside(tmp_path, caplog):
    before: Any = MODELS["SpeechT5"].make(True)
    before.config.leaky_relu_slope = 0.3
    model = type(before)(before.config).eval()  # which takes its slope from there
    model.load_state_dict(before.state_dict())
    model.mean.normal_()
    model.scale.uniform_(0.5, 2)
    model.save_pretrained(tmp_path)
    assert model.config.normalize_before
    found, mel = muomni_fast.load(tmp_path), torch.randn(12, 6)
    assert "give the generator (mel - mean) / scale" in caplog.text
    given = (mel - model.mean) / model.scale
    with torch.no_grad():
        assert snr(found(given.t()[None])[0], model(mel)) >= 100
    caplog.clear()
    edit(tmp_path, normalize_before=False)
    muomni_fast.load(tmp_path)
    assert "mean" not in "".join(r.message for r in caplog.records if r.levelno > logging.INFO)


def test_speakers_are_added_outside(tmp_path, model_of, caplog):
    model = model_of("VITS, speakers")
    found = muomni_fast.load(tmp_path)
    assert "addends=[cond(speaker)]" in caplog.text
    x, speaker = torch.randn(2, 6, 12), torch.randn(2, 5, 1)
    with torch.no_grad():
        ours = found(x, addends=[model.decoder.cond(speaker)])
        assert snr(ours[:, None], model.decoder(x, speaker)) >= 100


@pytest.mark.parametrize("old", [True, False], ids=["weight_g", "parametrizations"])
def test_normed_weights(tmp_path, model_of, old):
    model = copy.deepcopy(model_of("SpeechT5"))
    model.apply_weight_norm()
    state = dict(model.state_dict())
    assert any("parametrizations" in name for name in state)
    if old:
        for number, kind in enumerate("gv"):
            suffix = f"parametrizations.weight.original{number}"
            state = {name.replace(suffix, f"weight_{kind}"): value for name, value in state.items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert same_audio(muomni_fast.load(tmp_path), model)


def test_a_model_of_two_models(tmp_path, model_of, caplog):
    """The vocoder inside FastSpeech2ConformerWithHifiGan, whose settings are an entry's."""
    caplog.set_level(logging.INFO)
    vocoder = model_of("FastSpeech2Conformer")
    inner = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "hifigan"}
    whole = {"model_type": "fastspeech2_conformer_with_hifigan", "vocoder_config": inner}
    state = {f"vocoder.{name}": value for name, value in vocoder.state_dict().items()}
    state |= {"model.duration.conv_pre.weight": torch.ones(2), "model.x": torch.ones(2)}
    safetensors.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert same_audio(muomni_fast.load(tmp_path), vocoder)
    assert "at 'vocoder.'; left out: 2 of model; left out: 2 of vocoder" in caplog.text
    edit(tmp_path, vocoder_config=inner | {"upsample_rates": [4, "2"]})
    with pytest.raises(CheckpointError, match=r"config\.json: vocoder_config: upsample_rates: "):
        muomni_fast.load(tmp_path)


@pytest.mark.parametrize("entry", ["", "audio_encoder", "codec_config"])
def test_encodec_alone_and_in_others(tmp_path, model_of, entry):
    """MusicGen has its settings as `audio_encoder`, Bark as `codec_config`."""
    prefix = {"": "", "audio_encoder": "audio_encoder.", "codec_config": "codec_model."}[entry]
    model = model_of("EnCodec")
    if entry:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bark", entry: config}))
    state = {prefix + name: value for name, value in model.state_dict().items()}
    safetensors.save_file(state, tmp_path / "model.safetensors")
    assert same_codes(muomni_fast.load(tmp_path), model.quantizer, 8)
    (tmp_path / "config.json").unlink()  # the weights say all of it
    assert same_codes(muomni_fast.load(tmp_path / "model.safetensors"), model.quantizer, 8)
    assert same_codes(muomni_fast.load(tmp_path), model.quantizer, 8)


@pytest.mark.parametrize("prefix", ["", "codec_model."])
def test_mimi_has_two_quantizers(tmp_path, model_of, prefix):
    model = model_of("Mimi")
    config = json.loads((tmp_path / "config.json").read_text())
    if prefix:
        whole = {"model_type": "csm", "codec_config": config}
        (tmp_path / "config.json").write_text(json.dumps(whole))
    state = {prefix + name: value for name, value in model.state_dict().items()}
    safetensors.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"name its `part`: 'acoustic' or 'semantic'"):
        muomni_fast.load(tmp_path)
    found = {part: muomni_fast.load(tmp_path, part) for part in ("semantic", "acoustic")}
    own = model.quantizer
    semantic, acoustic = (
        own.semantic_residual_vector_quantizer,
        own.acoustic_residual_vector_quantizer,
    )
    assert same_codes(found["semantic"], semantic, 8) and same_codes(found["acoustic"], acoustic, 8)
    assert (found["semantic"].n_codebooks, found["acoustic"].n_codebooks) == (1, 3)
    with torch.no_grad():  # both of one input, and what they decode is added
        x = torch.randn(1, 8, 9)
        codes = {part: rvq.encode(x.transpose(1, 2)) for part, rvq in found.items()}
        both = torch.cat([*codes.values()], -1).permute(2, 0, 1)
        assert torch.equal(both, own.encode(x))
        decoded = sum(rvq.decode(codes[part]) for part, rvq in found.items())
        expected = own.decode(both.transpose(0, 1))
        torch.testing.assert_close(decoded.transpose(1, 2), expected, atol=1e-5, rtol=1e-5)
    name = f"{prefix}quantizer.acoustic_residual_vector_quantizer."
    assert same_codes(muomni_fast.load(tmp_path, name), acoustic, 8)


def test_xcodec(tmp_path):
    model = MODELS["X-Codec"].make(True)
    config = {"model_type": "xcodec", "codebook_size": 16, "codebook_dim": 8}
    rates = {"sample_rate": 16000, "acoustic_model_config": {"downsampling_ratios": [8, 5, 4, 2]}}
    count = len(model.quantizers)
    rates["target_bandwidths"] = [0.5, 50 * 4 * count / 1000]
    (tmp_path / "config.json").write_text(json.dumps(config | rates))
    state = {f"quantizer.{name}": value for name, value in model.state_dict().items()}
    safetensors.save_file(state, tmp_path / "model.safetensors")
    assert same_codes(muomni_fast.load(tmp_path), model, 8)
    edit(tmp_path, sample_rate=16000.0, codebook_size=16.0)  # as some write integers
    assert same_codes(muomni_fast.load(tmp_path), model, 8)
    edit(tmp_path, target_bandwidths=[50 * 4 * (count + 1) / 1000])
    with pytest.raises(CheckpointError, match=rf"Missing key.*codebooks\.{count}\.weight"):
        muomni_fast.load(tmp_path)


def test_several_files_and_only_those_of_the_part(tmp_path):
    model = MODELS["VITS"].make(True)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    index = tmp_path / "model.safetensors.index.json"
    shards = json.loads(index.read_text())["weight_map"]
    own = {file for name, file in shards.items() if name.startswith("decoder.")}
    others = set(shards.values()) - own
    assert len(own) > 1 and others
    for file in others:
        (tmp_path / file).unlink()
    assert same_audio(muomni_fast.load(tmp_path), model.decoder)
    assert same_audio(muomni_fast.load(index), model.decoder)


def test_half_precision(tmp_path, model_of):
    model = copy.deepcopy(model_of("SpeechT5")).half()
    model.save_pretrained(tmp_path)
    found = muomni_fast.load(tmp_path)
    assert found.conv_pre.weight.dtype == torch.float32
    assert same_audio(found, model.float())


def test_safetensors_come_first(tmp_path, model_of):
    model = model_of("EnCodec")
    torch.save(MODELS["EnCodec"].make(True).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert same_codes(muomni_fast.load(tmp_path), model.quantizer, 8)


@pytest.mark.long
@pytest.mark.parametrize("name", WHOLE)
def test_inside_other_models(tmp_path, name):
    """As transformers itself names keys and settings there."""
    make, place, part = WHOLE[name]
    torch.manual_seed(0)
    model = make()
    for tensor in model.get_submodule(place).buffers():
        if tensor.ndim == 2:  # codewords, which are zeros
            tensor.normal_()
    model.save_pretrained(tmp_path)
    own, found = model.get_submodule(place), muomni_fast.load(tmp_path, part)
    assert same_audio(found, own) if "HifiGan" in name else same_codes(found, own, found.n_mels)
