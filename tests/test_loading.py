"""Files that people have, loaded as the module they hold; what is wrong with them is named."""

import json
import logging

import pytest
import torch

import muomni_fast
from muomni_fast import HiFiGANVocoder, MelConfig, SpeechCodec, reference
from muomni_fast.reference.errors import CheckpointError

pytest.importorskip("safetensors")
from safetensors.torch import save_file  # noqa: E402
from support.fuzz_pretrained import fuzz_pretrained  # noqa: E402

from muomni_fast.reference.rvq.digest import quantizer_digest  # noqa: E402

CONFIG = {
    **{"num_mels": 4, "hop_size": 2, "sampling_rate": 8000, "n_fft": 64, "win_size": 64},
    **{"fmin": 0, "fmax": 4000, "upsample_rates": [2], "upsample_kernel_sizes": [4]},
    **{"upsample_initial_channel": 4, "resblock": "2", "resblock_kernel_sizes": [3]},
    "resblock_dilation_sizes": [[1, 2]],
}
MEL = MelConfig(sample_rate=8000, n_fft=64, win_length=64, hop_length=2, n_mels=4, fmax=4000.0)


def generator(weight_norm: bool = False) -> reference.HiFiGANVocoder:
    return reference.HiFiGANVocoder(
        4, (2,), (4,), 4, "2", (3,), ((1, 2),), weight_norm=weight_norm
    ).eval()


def quantizer(**sizes) -> reference.RVQ:
    return reference.RVQ(**{"codebook_size": 8, "codebook_dim": 3, "n_mels": 4} | sizes).eval()


def same_codes(found, rvq: reference.RVQ) -> bool:
    assert type(found) is muomni_fast.RVQ and found.config == rvq.config and not found.training
    mel = torch.randn(50, rvq.n_mels)
    return torch.equal(found.encode(mel), rvq.encode(mel))


def same_audio(found, vocoder: reference.HiFiGANVocoder) -> bool:
    assert type(found) is HiFiGANVocoder and not found.training
    mel = torch.randn(1, vocoder.n_mels, 6)
    return torch.allclose(found(mel), vocoder(mel), atol=1e-6)


@pytest.mark.parametrize("library", [reference, muomni_fast], ids=["reference", "fast"])
def test_what_is_saved_here_comes_back(tmp_path, library):
    rvq = library.RVQ(codebook_size=8, codebook_dim=3, n_mels=4)
    vocoder = library.HiFiGANVocoder(4, (2,), (4,), 4, "2", (3,), ((1, 2),))
    muomni_fast.save(rvq, tmp_path / "a.json", MEL, note="mine")
    muomni_fast.save(vocoder, tmp_path / "b.json", MEL)
    assert same_codes(muomni_fast.load(tmp_path / "a.json"), rvq)
    assert same_audio(muomni_fast.load(tmp_path / "b.json"), vocoder)
    codec = library.SpeechCodec(rvq, vocoder, MEL, frames_per_code=3)
    muomni_fast.save(codec, tmp_path / "codec")
    again = muomni_fast.load(tmp_path / "codec")
    assert type(again) is SpeechCodec and again.config == MEL and again.frames_per_code == 3
    audio = torch.randn(1, 60)
    assert torch.equal(again.encode(audio), codec.encode(audio))
    assert torch.allclose(again.decode(again.encode(audio)), codec.decode(codec.encode(audio)))


def test_a_codec_of_griffin_lim(tmp_path):
    codec = SpeechCodec(muomni_fast.RVQ(), muomni_fast.NeuralVocoder(), MelConfig())
    muomni_fast.save(codec, tmp_path)
    assert isinstance(muomni_fast.load(tmp_path).vocoder.vocoder, reference.GriffinLimVocoder)


def test_a_codec_keeps_what_its_vocoder_was_trained_on(tmp_path, caplog):
    codec = SpeechCodec(quantizer(), reference.GriffinLimVocoder(MEL), MEL)
    muomni_fast.save(codec, tmp_path)
    digest = quantizer_digest(codec.rvq, 1)
    muomni_fast.save(generator(), tmp_path / "vocoder.json", MEL, decoded_mels=digest)
    muomni_fast.save(muomni_fast.load(tmp_path), tmp_path / "again")
    again = muomni_fast.load(tmp_path / "again")
    assert again.vocoder.decoded_mels == digest and "another quantizer" not in caplog.text
    again.rvq.proj_in.weight.data.add_(1)
    muomni_fast.save(again, tmp_path / "changed")
    muomni_fast.load(tmp_path / "changed")
    assert "mels of another quantizer" in caplog.text


def test_a_codec_of_stacked_frames(tmp_path):
    stacked = dict(frames_per_code=3, pooling="stack")
    codec = SpeechCodec(quantizer(n_mels=12), reference.GriffinLimVocoder(MEL), MEL, **stacked)
    muomni_fast.save(codec, tmp_path)
    again = muomni_fast.load(tmp_path)
    assert (again.frames_per_code, again.pooling) == (3, "stack")
    audio = torch.randn(1, 60)
    assert torch.equal(again.encode(audio), codec.encode(audio))


@pytest.mark.parametrize("library", [reference, muomni_fast], ids=["reference", "fast"])
def test_a_codec_that_speaks(tmp_path, library):
    """A Talker is not lost on the way: alone, in a codec, and in a folder as a run leaves it."""
    talker = library.Talker(codebook_size=8, dim=8, n_layers=1, n_heads=2, speakers=["ada"])
    rvq = library.RVQ(codebook_size=8, codebook_dim=3, n_mels=4)
    codec = library.SpeechCodec(rvq, reference.GriffinLimVocoder(MEL), MEL, 3, talker=talker)
    muomni_fast.save(codec, tmp_path / "checkpoints")
    muomni_fast.save(talker, tmp_path / "alone.json", MEL)
    for found in (
        muomni_fast.load(tmp_path / "alone.json"),
        muomni_fast.load(tmp_path).talker,
        muomni_fast.load(tmp_path / "checkpoints").talker,
    ):
        assert type(found) is muomni_fast.Talker and not found.training
        assert found.speakers == ("ada",)
        torch.testing.assert_close(dict(found.state_dict()), dict(talker.state_dict()))


@pytest.mark.parametrize("normed", [True, False], ids=["normed", "folded"])
@pytest.mark.parametrize("name", ["g_00000020", "generator_v2", "model.pth"])
def test_a_folder_of_hifigans_own_code(tmp_path, name, normed):
    model = generator(normed)
    torch.save({"generator": model.state_dict()}, tmp_path / name)
    torch.save({"generator": generator().state_dict()}, tmp_path / "g_00000003")
    torch.save({"mpd": {}, "steps": 20}, tmp_path / "do_00000020")
    (tmp_path / "LICENSE").write_text("anybody's")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert same_audio(muomni_fast.load(tmp_path / name), model)
    if name.startswith("g_"):  # the last of its training
        assert same_audio(muomni_fast.load(tmp_path), model)


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "codec.quantizer."])
@pytest.mark.parametrize("sizes", [{}, {"bias": True}, {"projections": False, "n_mels": 3}])
def test_a_quantizer_is_found_by_its_keys(tmp_path, caplog, prefix, sizes):
    caplog.set_level(logging.INFO)
    rvq = quantizer(**sizes)
    state = {prefix + name: value for name, value in rvq.state_dict().items()}
    save_file(state | {"head.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    torch.save({"epoch": 3, "model": state | {"talker.step": 7}}, tmp_path / "a.pt")
    assert same_codes(muomni_fast.load(tmp_path / "a.safetensors"), rvq)
    assert "left out: 1 of head" in caplog.text
    assert same_codes(muomni_fast.load(tmp_path / "a.pt"), rvq)
    assert "left out: 1 of talker" in caplog.text


def test_half_precision_comes_back_as_float32(tmp_path):
    rvq = quantizer().half()
    torch.save(rvq.state_dict(), tmp_path / "a.pt")
    assert same_codes(muomni_fast.load(tmp_path / "a.pt"), rvq.float())


def test_a_generator_of_the_default_sizes_needs_no_config(tmp_path):
    model = reference.HiFiGANVocoder().eval()  # micro-Omni's
    torch.save({"generator": model.state_dict(), "mpd": {}}, tmp_path / "a.pt")
    assert same_audio(muomni_fast.load(tmp_path / "a.pt"), model)


def test_one_of_several_parts(tmp_path):
    first, second, vocoder = quantizer(), quantizer(codebook_size=5), generator()
    parts = {"semantic.": first, "acoustic.": second, "vocoder.": vocoder}
    state = {p + name: v for p, model in parts.items() for name, v in model.state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match=r"one quantizer.*semantic\.'.*name its `part`"):
        muomni_fast.load(tmp_path / "a.pt")
    assert same_codes(muomni_fast.load(tmp_path / "a.pt", "acoustic."), second)
    assert same_audio(muomni_fast.load(tmp_path, "vocoder."), vocoder)
    with pytest.raises(CheckpointError, match=r"at 'nowhere\.'"):
        muomni_fast.load(tmp_path / "a.pt", "nowhere.")
    many = {f"{'x' * 10**5}.{i}.codebooks.0.weight": torch.ones(1) for i in range(50)}
    torch.save(many, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"42 more; name its `part`") as caught:
        muomni_fast.load(tmp_path / "a.pt")
    assert len(str(caught.value)) < 5000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("proj_out.weight"), r"Missing key.*proj_out\.weight"),
        (lambda s: s.update({"proj_out.scale": torch.ones(1)}), r"Unexpected key.*proj_out\.scale"),
        (lambda s: s.update({"codebooks.1.weight": torch.ones(8, 4)}), r"codebooks\.1\.weight"),
        (lambda s: s.update({"codebooks.0.weight": torch.ones(8)}), "two dimensions, got .8,"),
        (lambda s: s.update({"proj_in.weight": torch.tensor(1.0)}), r"two dimensions, got \(\)"),
        (lambda s: s.update({"codebooks.0.weight": 5}), "expected plain tensors by name"),
        (lambda s: s.update({"proj_in.weight": torch.full((3, 4), torch.nan)}), "not finite"),
        (lambda s: s.pop("codebooks.0.weight"), "expected keys of one quantizer.*none"),
        (lambda s: s.clear(), "expected a generator's state dict"),
    ],
)
def test_keys_that_do_not_fit_are_listed(tmp_path, change, message):
    state = dict(quantizer().state_dict())
    change(state)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=rf"(?s)a\.pt: .*{message}"):
        muomni_fast.load(tmp_path / "a.pt")


def test_a_config_stands_for_its_folder(tmp_path):
    """Of HiFi-GAN's own code and of a run; not what was saved here under such a name."""
    model = generator()
    torch.save({"generator": model.state_dict()}, tmp_path / "g_00000020")
    (tmp_path / "config_v1.json").write_text(json.dumps(CONFIG))
    assert same_audio(muomni_fast.load(tmp_path / "config_v1.json"), model)
    run, rvq = tmp_path / "run", quantizer()
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text('{"train": {}, "run": {}}')
    muomni_fast.save(rvq, run / "checkpoints" / "rvq.json", MEL)
    assert same_codes(muomni_fast.load(run / "config.json").rvq, rvq)
    muomni_fast.save(rvq, run / "checkpoints" / "config.json", MEL)
    assert same_codes(muomni_fast.load(run / "checkpoints" / "config.json"), rvq)
    with pytest.raises(CheckpointError, match=r"none.config\.json: .*No such file"):
        muomni_fast.load(tmp_path / "none" / "config.json")
    (run / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        muomni_fast.load(run / "config.json")


def test_folders_that_hold_nothing_or_too_much(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected rvq\.json or vocoder\.json"):
        muomni_fast.load(tmp_path)
    with pytest.raises(CheckpointError, match="No such file"):
        muomni_fast.load(tmp_path / "absent.pt")
    for name in ("a.pt", "b.pt"):
        torch.save(quantizer().state_dict(), tmp_path / name)
    with pytest.raises(CheckpointError, match=r"one file of weights.*a\.pt.*b\.pt"):
        muomni_fast.load(tmp_path)
    torch.save(generator().state_dict(), tmp_path / "g.pt")
    for name in ("config.json", "config_v2.json"):
        (tmp_path / name).write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match=r"one config beside it.*config_v2"):
        muomni_fast.load(tmp_path / "g.pt")


def test_what_save_refuses(tmp_path):
    with pytest.raises(ValueError, match="mel: expected those it was trained with, got None"):
        muomni_fast.save(quantizer(), tmp_path / "a.json")
    with pytest.raises(TypeError, match="model: expected an RVQ.*got Linear"):
        muomni_fast.save(torch.nn.Linear(2, 2), tmp_path / "a.json", MEL)
    codec = SpeechCodec(muomni_fast.RVQ(), muomni_fast.NeuralVocoder(), MelConfig())
    with pytest.raises(ValueError, match="mel: expected None"):
        muomni_fast.save(codec, tmp_path, MEL)
    assert not list(tmp_path.iterdir())


def test_the_codec_with_a_vocoder_that_comes_with_the_library(caplog):
    """Its quantizer is that of the one without: codes of either decode by both."""
    codec, plain = muomni_fast.load("muomni-62-small"), muomni_fast.load("muomni-62")
    assert quantizer_digest(codec.rvq, 1) == quantizer_digest(plain.rvq, 1)
    assert "mels of another quantizer" not in caplog.text
    generator = codec.vocoder.vocoder
    assert isinstance(generator, muomni_fast.HiFiGANVocoder)
    audio = codec.decode(codec.encode(torch.randn(1, 2000) / 10), length=2000)
    assert audio.shape == (1, 2000) and audio.isfinite().all() and audio.abs().max() > 0.01
    for model in ("muomni-62", "muomni-62-small"):
        assert (
            "CC BY 4.0" in (muomni_fast.SHIPPED_MODEL.parent / model / "MODEL_CARD.md").read_text()
        )


def test_a_model_that_comes_with_the_library_by_its_name(tmp_path, monkeypatch):
    """What lies at a path of that name comes first."""
    monkeypatch.chdir(tmp_path)
    codec = muomni_fast.load("muomni-62")
    assert codec.rvq.n_codebooks == 8
    shipped = sorted(
        path.name for path in muomni_fast.SHIPPED_MODEL.parent.iterdir() if path.is_dir()
    )
    assert shipped == ["muomni-62", "muomni-62-small"]
    with pytest.raises(CheckpointError) as error:
        muomni_fast.load("muomni-63")
    assert "no file or folder, and no model that comes with the library" in str(error.value)
    assert str(error.value).endswith(", ".join(shipped) + ")")
    for path in ("some/muomni-62", "muomni-63.json", tmp_path / "muomni-62"):
        with pytest.raises(CheckpointError, match="No such file"):
            muomni_fast.load(path)
    (tmp_path / "muomni-62").mkdir()
    muomni_fast.save(quantizer(n_codebooks=3), "muomni-62/rvq.json", MEL)
    assert muomni_fast.load("muomni-62").rvq.n_codebooks == 3


def test_broken_folders_of_transformers_are_loaded_right_or_refused(tmp_path):
    """Ten of every kind; `make fuzz` loads more."""
    figures = fuzz_pretrained(100, 0, tmp_path)
    assert figures.files == 100 and figures.read > 5 and figures.refused > 30, str(figures)


def test_only_the_part_is_read(tmp_path, monkeypatch):
    """Of safetensors, which may hold gigabytes besides."""
    rvq, read = quantizer(), []
    from muomni_fast.reference import reading

    library = reading.safetensors_library()
    opened = library.safe_open

    class Watched:
        def __init__(self, *args, **kwargs):
            self.file = opened(*args, **kwargs)

        def __enter__(self):
            return self

        def __exit__(self, *rest):
            pass

        def get_tensor(self, name):
            read.append(name)
            return self.file.__enter__().get_tensor(name)

    monkeypatch.setattr(library, "safe_open", Watched)
    state = {f"rvq.{name}": value for name, value in rvq.state_dict().items()}
    save_file(state | {"head.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    assert same_codes(muomni_fast.load(tmp_path / "a.safetensors"), rvq)
    assert set(read) == set(state)
