"""Files of weights that are made to cost time or memory, or to be taken for what they are not."""

import json
import struct
import time
from pathlib import Path

import pytest
import torch

import muomni_fast
from muomni_fast import CheckpointError

pytest.importorskip("safetensors")
from safetensors.torch import save_file  # noqa: E402

BOOK = torch.ones(8, 4)
GENERATOR = {
    **{"upsample_rates": [2], "upsample_kernel_sizes": [4], "resblock": "1"},
    **{"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 2]]},
}
SHARED = torch.ones(256, 1024)


def header_only(path: Path, names: list[str]) -> None:
    """A safetensors file of tensors without entries."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps(dict.fromkeys(names, entry)).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def test_long_names_take_no_time(tmp_path):
    header_only(tmp_path / "a.safetensors", ["quantizers.0.in_proj." * 10_000 + "\n"])
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="not yet"):
        muomni_fast.load(tmp_path / "a.safetensors")
    assert time.perf_counter() - start < 3


def test_many_names_take_no_time(tmp_path):
    names = ["codebooks.0.weight", *(f"codebooks.{i}.x" for i in range(8_000))]
    header_only(tmp_path / "a.safetensors", names[:1])
    index = tmp_path / "a.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")}))
    header_only(tmp_path / "a.safetensors", names[1:])
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"lacks codebooks\.0\.weight, of which"):
        muomni_fast.load(index)
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"codebooks.0.weight": torch.empty(2**15, 2**14, device="meta")}, "expected plain ten"),
        ({"codebooks.0.weight": BOOK.to(torch.float8_e4m3fn)}, "plain.*torch.float8_e4m3fn"),
        ({"codebooks.0.weight": BOOK.to(torch.complex64)}, "plain tensors.*torch.complex64"),
        ({"codebooks.0.weight": BOOK.int()}, "plain tensors.*torch.int32"),
        ({"codebooks.0.weight": BOOK.to_sparse()}, "expected plain tensors"),
        (
            {f"codebooks.{i}.weight": SHARED for i in range(250)},
            r"250 tensors in 1,048,576 bytes: expected at most 2,048,576 parameters",
        ),
        (
            {"codebooks.0.weight": SHARED}
            | {f"codebooks.{i}.weight": torch.ones(1, 1) for i in range(1, 250)},
            r"expected at most 1,262,393 parameters",
        ),
        (
            {f"codebooks.{i}.x": torch.ones(1) for i in range(250)}
            | {"codebooks.0.weight": SHARED, "proj_in.weight": torch.ones(1024, 8)},
            r'Missing key\(s\) in state_dict: "proj_out\.weight"\.',  # not 249 codebooks
        ),
    ],
    ids=["meta", "float8", "complex", "int", "sparse", "shared", "large", "names"],
)
def test_tensors_that_are_not_what_they_seem(tmp_path, state, message):
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=rf"(?s)a\.pt: .*{message}"):
        muomni_fast.load(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_not_plain(tmp_path):
    torch.save({"codebooks.0.weight": torch.nested.nested_tensor([BOOK])}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt: expected plain tensors"):
        muomni_fast.load(tmp_path / "a.pt")


def test_shared_memory_of_few_names(tmp_path):
    """Codebooks that are one are no attack."""
    torch.save({f"codebooks.{i}.weight": BOOK.half() for i in range(3)}, tmp_path / "a.pt")
    assert muomni_fast.load(tmp_path / "a.pt").n_codebooks == 3


def test_part_is_a_string_and_of_others_files(tmp_path):
    rvq, mel = muomni_fast.RVQ(), muomni_fast.MelConfig()
    muomni_fast.save(rvq, tmp_path / "rvq.json", mel)
    with pytest.raises(TypeError, match=r"part: expected a string, got \['a'\]"):
        muomni_fast.load(tmp_path, ["a"])
    for path in (tmp_path, tmp_path / "rvq.json"):
        with pytest.raises(CheckpointError, match="expected part None, got 'x'"):
            muomni_fast.load(path, "x")


def test_messages_are_short(tmp_path, caplog):
    caplog.set_level("INFO")
    long = "y" * 10**6
    index = tmp_path / "a.index.json"
    names = ["codebooks.0.weight", f"{long}.a", *(f"{i}.a" for i in range(99))]
    save_file({name: BOOK.clone() for name in names}, tmp_path / "a.safetensors")
    muomni_fast.load(tmp_path / "a.safetensors")
    assert "left out: 1 of 0" in caplog.text and len(caplog.text) < 5000
    for shard, message in (("../a.bin", "expected "), (7, "string"), ("a.safetensors", "lacks")):
        names = ["codebooks.0.weight", f"codebooks.0.{long}"]
        names += [f"codebooks.{i}.x" for i in range(99)]
        shards = dict.fromkeys(names if shard != "../a.bin" else names[1:], shard)
        index.write_text(json.dumps({"weight_map": shards}))
        with pytest.raises(CheckpointError, match=message) as caught:
            muomni_fast.load(index)
        assert len(str(caught.value)) < 5000


def test_what_a_generator_of_default_sizes_lacks_is_listed(tmp_path):
    torch.save({"ups.0.weight": BOOK}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"Missing key.*conv_post\.bias"):
        muomni_fast.load(tmp_path / "a.pt")


def nsf() -> dict[str, torch.Tensor]:
    """A generator with a harmonic source, which HiFi-GAN's has not."""
    model = muomni_fast.HiFiGANVocoder(n_mels=4, upsample_initial_channel=4, **GENERATOR)
    more = {"noise_convs.0.weight": torch.ones(2, 1, 4), "m_source.l_linear.weight": BOOK}
    return {**model.state_dict(), **more}


@pytest.mark.parametrize("prefix", ["", "generator."])
def test_more_inside_a_generator_is_refused(tmp_path, prefix):
    mel = {"num_mels": 4, "hop_size": 2, "sampling_rate": 8000, "n_fft": 64, "win_size": 64}
    config = {**mel, **GENERATOR, "fmin": 0, "fmax": 4000, "upsample_initial_channel": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({prefix + name: value for name, value in nsf().items()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"got m_source\.l_linear.*, noise_convs\.0.* besid"):
        muomni_fast.load(tmp_path)


@pytest.mark.parametrize("name", ["noise_convs.0.weight", "mean", "conv_pre2.weight"])
def test_more_inside_a_generator_of_transformers_is_refused(tmp_path, caplog, name):
    model = muomni_fast.HiFiGANVocoder(
        n_mels=4, upsample_initial_channel=4, conv_post_bias=False, **GENERATOR
    )
    state = {f"decoder.{n.replace('ups', 'upsampler')}": v for n, v in model.state_dict().items()}
    state |= {"decoder.cond.weight": torch.ones(4, 2, 1), "posterior.x": torch.ones(1)}
    config = GENERATOR | dict(upsample_initial_channel=4, leaky_relu_slope=0.1, flow_size=4)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "vits"}))
    save_file(state, tmp_path / "model.safetensors")
    muomni_fast.load(tmp_path)
    assert "addends=[cond(speaker)]" in caplog.text  # though its config states no speakers
    save_file(state | {f"decoder.{name}": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"at 'decoder\.', got {name} besides"):
        muomni_fast.load(tmp_path)


@pytest.mark.parametrize("family", ["ours", "EnCodec"])
def test_more_inside_a_quantizer_is_refused(tmp_path, family):
    book = {"ours": "codebooks.0.weight", "EnCodec": "layers.0.codebook.embed"}[family]
    state = {f"rvq.{book}": BOOK, "head.weight": torch.ones(2)}
    torch.save(state, tmp_path / "a.pt")
    assert muomni_fast.load(tmp_path / "a.pt").n_codebooks == 1
    torch.save(state | {"rvq.project_in.weight": BOOK}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"at 'rvq\.', got project_in\.weight besides"):
        muomni_fast.load(tmp_path / "a.pt")


@pytest.mark.parametrize("config", [None, "higgs_audio_v2_tokenizer"])
def test_codebooks_with_projections_of_their_own_are_refused(tmp_path, config):
    """Higgs Audio's keys, which resemble X-Codec's."""
    state = {}
    for q in range(2):
        prefix = f"quantizer.quantizers.{q}."
        for name, size in (("embed", (8, 4)), ("embed_avg", (8, 4)), ("cluster_size", (8,))):
            state[f"{prefix}codebook.{name}"] = torch.ones(size)
        for name, size in (("project_in", (4, 6)), ("project_out", (6, 4))):
            state[f"{prefix}{name}.weight"] = torch.ones(size)
    save_file(state, tmp_path / "model.safetensors")
    if config:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": config}))
    with pytest.raises(CheckpointError, match="projections of its own: not yet"):
        muomni_fast.load(tmp_path)
