"""Files that others wrote: what is not regular, not JSON or too much is refused by name."""

import json
import os
import struct
import time
import tracemalloc

import pytest
import torch

from muomni_fast import HiFiGANVocoder, MelConfig, NeuralVocoder, SpeechCodec
from muomni_fast.reference import checkpoint
from muomni_fast.reference.errors import CheckpointError
from muomni_fast.reference.reading import (
    DTYPES,
    MOST_JSON,
    load_foreign,
    open_regular,
    read_json,
    read_layout,
    read_regular,
)

HOSTILE = {
    "brackets": (b"[" * 100_000, "depth|deep|Expecting"),
    "closed brackets": (b"[" * 100_000 + b"]" * 100_000, "depth|deep"),
    "objects": (b'{"a":' * 100_000, "depth|deep"),
    "deeper than we write": (b'{"a":' * 33 + b"1" + b"}" * 33, "more than 32 deep"),
    "a key twice": (b'{"a": 1, "b": {"c": 1, "d": 2, "c": 3}}', "the key 'c' comes twice"),
    "NaN": (b'{"a": NaN}', "NaN is not a number in JSON"),
    "Infinity": (b'{"a": [-Infinity]}', "-Infinity is not a number in JSON"),
    "a float too large": (b'{"a": 1e999}', "1e999 is too large a number"),
    "5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "an integer of 5000 digits is too large"),
    "no object": (b"[1]", "it holds no object"),
    "nothing": (b"", "Expecting value"),
    "no text": (b'{"a": "\xff"}', "it is not text"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "it is not text"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_json_that_is_not_plain_is_refused(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"a\.json: not ours.*({message})") as error:
        read_json(path, "not ours")
    assert len(str(error.value)) < 300
    for load in (
        lambda: NeuralVocoder(path),
        lambda: SpeechCodec.from_checkpoints(path),
        lambda: MelConfig.from_hifigan(path),
        lambda: HiFiGANVocoder.from_hifigan(path, path),
    ):
        with pytest.raises(CheckpointError, match=r"a\.json"):
            load()


def test_plain_json_is_read(tmp_path):
    document = {"a": [1, -2.5, 1e-5, True, None, "é\ud800"], "b": {"a": {}}, "c": 10**18}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    assert read_json(path, "not ours") == document


def test_large_json_is_refused_unread(tmp_path):
    path = tmp_path / "a.json"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # takes no place on the disk
    tracemalloc.start()
    try:
        with pytest.raises(
            CheckpointError, match=rf"a\.json: expected at most {MOST_JSON:,} bytes"
        ):
            read_json(path, "not ours")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_only_regular_files_are_read(tmp_path):
    """A pipe would hang until somebody writes to it, a device may never end."""
    os.mkfifo(tmp_path / "pipe")
    start = time.perf_counter()
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        for read in (
            read_regular,
            read_layout,
            NeuralVocoder,
            MelConfig.from_hifigan,
            checkpoint.load_training_state,
            load_foreign,
        ):
            with pytest.raises(CheckpointError, match="regular file|Is a directory") as error:
                read(path)
            assert str(path) in str(error.value)
    assert time.perf_counter() - start < 5
    for name, message in (("nothing", "No such file"), ("a\0b", "not a file's name: ")):
        with pytest.raises(CheckpointError, match=message), open_regular(tmp_path / name):
            pass


def test_layouts_are_those_of_the_files(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {name: torch.zeros(2, 3).to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(1.0), "empty": torch.zeros(0, 5)}
    safetensors.save_file(tensors, tmp_path / "a", metadata={"x": "y"})
    layout = read_layout(tmp_path / "a")
    assert layout.keys() == tensors.keys()
    for name, tensor in tensors.items():
        found = layout[name]
        assert found.is_meta and (found.shape, found.dtype) == (tensor.shape, tensor.dtype)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": {"shape": [2]}}, "KeyError: 'dtype'"),
        ({"a": {"shape": [2], "dtype": "F4"}}, "'F4'"),
        ({"a": {"shape": [-2], "dtype": "F32"}}, "negative dimension"),
        ({"a": {"shape": [1 << 62, 1 << 62], "dtype": "F32"}}, "RuntimeError"),
        ({"a": {"shape": [1 << 70], "dtype": "F32"}}, "Error: "),
        ({"a": {"shape": "12", "dtype": "F32"}}, "TypeError"),
        ({"a": 7}, "TypeError"),
        ({"a": {"shape": [1 << 40], "dtype": "F32"}}, "expected 4,398,046,511,1.. bytes, got"),
    ],
)
def test_layouts_that_cannot_be_are_refused(tmp_path, header, message):
    content = json.dumps(header).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(content)) + content)
    with pytest.raises(CheckpointError, match=message):
        read_layout(tmp_path / "a")


def test_headers_longer_than_their_file_are_refused(tmp_path):
    for size in (0, 3, 100):
        (tmp_path / "a").write_bytes(struct.pack("<Q", 1 << 62)[::-1] * (size > 8) + b"\xff" * size)
        with pytest.raises(CheckpointError, match="a: not a safetensors file"):
            read_layout(tmp_path / "a")
