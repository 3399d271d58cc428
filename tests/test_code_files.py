"""Files of codes: what was written is read, byte by byte as documented; all else is refused."""

import dataclasses
import os
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from support.environment import ROOT
from support.fuzz_codes import fuzz_codes

import muomni_fast
from muomni_fast import CodeFileError, CodeInfo, MelConfig, read_codes, write_codes
from muomni_fast.code_files import BLOCK, HEADER, fields_of, pack, packed_size, to_bytes, unpack
from muomni_fast.reference.errors import CheckpointError
from muomni_fast.reference.rvq.digest import quantizer_digest

MODEL = "0123456789abcdef" * 4
INFO = CodeInfo(8900, 3, 100, MODEL, MelConfig(fmin=20.5), 5, "stack", 44100, 24807)


def codes_of(info: CodeInfo) -> np.ndarray:
    shape = (info.steps, info.n_codebooks)
    return np.random.default_rng(0).integers(0, info.codebook_size, shape)


@pytest.mark.parametrize("size", [2, 3, 16, 100, 128, 129, 1024, 65535, 65536])
@pytest.mark.parametrize("n_codebooks", [1, 3, 8])
def test_what_is_written_is_read(tmp_path, size, n_codebooks):
    for length in (1, 256, 257, 9000):
        info = dataclasses.replace(INFO, length=length, n_codebooks=n_codebooks, codebook_size=size)
        codes = codes_of(info)
        codes[-1, -1] = size - 1
        write_codes(tmp_path / "a.muc", codes, info)
        found, again = read_codes(tmp_path / "a.muc")
        assert found.dtype == np.uint16 and np.array_equal(found, codes) and again == info
        assert os.listdir(tmp_path) == ["a.muc"]


@pytest.mark.parametrize("width", [1, 7, 10, 16])
def test_packing_by_blocks_is_packing_bit_by_bit(width):
    codes = np.random.default_rng(0).integers(0, 1 << width, BLOCK + 13).astype(np.uint16)
    content = pack(codes, width)
    text = "".join(f"{code:0{width}b}" for code in codes)
    text += "0" * (-len(text) % 8)
    assert content == int(text, 2).to_bytes(len(text) // 8, "big")
    assert np.array_equal(unpack(content, len(codes), width), codes)


def test_the_documented_bytes():
    """The table of docs/code-files.md, read by a reader that knows only it."""
    page = (ROOT / "docs" / "code-files.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \| `?(\w+)", page, re.M)
    kinds = {"u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q", "f64": "<d"}
    content, found, end = to_bytes(codes_of(INFO), INFO), {}, 0
    for start, size, kind, name in rows:
        assert int(start) == end
        part, end = content[end : end + int(size)], end + int(size)
        found[name] = struct.unpack(kinds[kind], part)[0] if kind in kinds else part
    assert end == HEADER.size
    expected = dataclasses.asdict(INFO)
    expected |= expected.pop("mel") | {"pooling": 1, "model": bytes.fromhex(MODEL)}
    assert found == expected | {
        "magic": b"\x89MUC\r\n\x1a\n",
        "version": 1,
        "bits_per_code": 7,
    }
    bits = "".join(f"{code:07b}" for code in codes_of(INFO).reshape(-1))
    packed = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    assert content[end:-4] == packed
    assert content[-4:] == struct.pack("<I", zlib.crc32(content[:-4]))


@pytest.mark.parametrize(("size", "n_codebooks", "per_code"), [(128, 2, 5), (1024, 8, 1)])
def test_files_are_as_small_as_their_bit_rate(size, n_codebooks, per_code):
    for seconds in (0.1, 3, 700):
        length = int(16000 * seconds)
        info = CodeInfo(length, n_codebooks, size, MODEL, MelConfig(), per_code)
        content = to_bytes(codes_of(info), info)
        assert len(content) <= 1.02 * info.bits_per_second / 8 * seconds + 256


def changed(**fields) -> bytes:
    """A header with values that no CodeInfo has, and its checksum."""
    names = [
        *("magic", "version", "sample_rate", "n_fft", "win_length", "hop_length", "n_mels"),
        *("fmin", "fmax", "log_floor", "frames_per_code", "pooling", "bits", "n_codebooks"),
        *("codebook_size", "source_rate", "length", "source_frames", "model"),
    ]
    content = to_bytes(codes_of(INFO), INFO)
    values = dict(zip(names, HEADER.unpack_from(content), strict=True)) | fields
    content = HEADER.pack(*values.values()) + content[HEADER.size : -4]
    return content + struct.pack("<I", zlib.crc32(content))


GOOD = to_bytes(codes_of(INFO), INFO)
WRONG = {
    "empty": (b"", "not a file of codes (.muc) but an empty file"),
    "wav": (b"RIFF of something else" * 20, "not a file of codes (.muc) but a WAV file"),
    "npz": (b"PK\3\4" * 20, "but a zip archive, as .npz is"),
    "text": (b"What is said." * 20, "not a file of codes (.muc) but something else"),
    "short": (GOOD[:50], "header of 120 bytes, got 50"),
    "cut": (GOOD[:-1], "bytes for 8,900 samples"),
    "longer": (GOOD + b"\0", "bytes for 8,900 samples"),
    "flipped": (GOOD[:130] + bytes([GOOD[130] ^ 1]) + GOOD[131:], "damaged: its checksum"),
    "version": (changed(version=2), "expected version 1, got 2"),
    "pooling": (changed(pooling=2), "pooling: expected 0 to 1, got 2"),
    "bits": (changed(bits=8), "bits per code: expected 7 for 100, got 8"),
    "size": (changed(codebook_size=1), "codebook_size: expected"),
    "smaller": (changed(codebook_size=65), "codes: expected 0 to 64"),
    "none": (changed(n_codebooks=0), "n_codebooks: expected"),
    "length": (changed(length=0), "length: expected"),
    "huge": (changed(length=1 << 47), "bytes for 140,737,488,355,328 samples"),
    "mel": (changed(fmax=float("nan")), "fmax: expected a finite number"),
    "hop": (changed(hop_length=0), "hop_length: expected"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(tmp_path, name):
    path, (content, message) = tmp_path / "a.muc", WRONG[name]
    path.write_bytes(content)
    with pytest.raises(CodeFileError, match=re.escape(message)) as error:
        read_codes(path)
    assert str(path) in str(error.value)


def test_bits_after_the_last_code_are_zero(tmp_path):
    path = tmp_path / "a.muc"
    count = INFO.steps * INFO.n_codebooks
    assert packed_size(count, 7) * 8 > count * 7
    content = GOOD[:-5] + bytes([GOOD[-5] | 1])
    path.write_bytes(content + struct.pack("<I", zlib.crc32(content)))
    with pytest.raises(CodeFileError, match="zeros after the last code"):
        read_codes(path)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("none", "No such file"), ("", "directory"), ("pipe", "regular file")):
        with pytest.raises(CodeFileError, match=message):
            read_codes(tmp_path / name)
    with pytest.raises(CheckpointError, match="cannot write"):
        write_codes(tmp_path / "none" / "a.muc", codes_of(INFO), INFO)


def test_what_cannot_be_written_is_refused():
    codes = codes_of(INFO)
    for wrong, kind, message in (
        (codes.tolist(), TypeError, "codes: expected an array of integers, got list"),
        (codes.astype(np.float32), TypeError, "got float32"),
        (codes[:-1], ValueError, r"expected \(7, 3\) for 8,900 samples, got \(6, 3\)"),
        (codes + 90, ValueError, "codes: expected 0 to 99"),
        (codes - 90, ValueError, "codes: expected 0 to 99"),
    ):
        with pytest.raises(kind, match=message):
            to_bytes(wrong, INFO)
    for name, value in (
        ("length", 0),
        ("length", 1.5),
        ("codebook_size", 1 << 17),
        ("n_codebooks", 257),
        ("pooling", "max"),
        ("model", "ABC"),
        ("source_rate", -1),
        ("mel", {}),
    ):
        with pytest.raises((TypeError, ValueError), match=f"{name}: expected"):
            dataclasses.replace(INFO, **{name: value})


def test_broken_files_are_refused_by_name(tmp_path):
    """`make fuzz` reads more."""
    figures = fuzz_codes(500, 0, tmp_path)
    assert figures.files == 500 and figures.refused > 400 and figures.read > 5, str(figures)


def test_the_digest_is_of_all_that_codes_depend_on():
    rvq = muomni_fast.reference.RVQ(2, 8, 3, n_mels=4)
    digest = quantizer_digest(rvq, 5, "stack")
    twin = muomni_fast.RVQ(2, 8, 3, n_mels=4)
    twin.load_state_dict(rvq.state_dict())
    assert quantizer_digest(twin.eval().prepare(), 5, "stack") == digest
    assert quantizer_digest(rvq, 4, "stack") != digest != quantizer_digest(rvq, 5, "mean")
    with torch.no_grad():
        twin.codebooks[1].weight[0, 0] += 1
    assert quantizer_digest(twin, 5, "stack") != digest


def test_codes_made_in_python(tmp_path):
    """What `CodeInfo.of` says of a codec's codes is what `muomni-fast encode` writes."""
    mel = MelConfig(sample_rate=8000, n_fft=64, win_length=64, hop_length=16, n_mels=4, fmax=4000.0)
    rvq = muomni_fast.RVQ(2, 8, 3, n_mels=8)
    vocoder = muomni_fast.GriffinLimVocoder(mel, n_iter=2)
    codec = muomni_fast.SpeechCodec(rvq, vocoder, mel, 2, "stack").eval()
    for books in (None, 1):
        audio = torch.randn(1, 501) * 0.1
        codes = codec.encode(audio, n_codebooks=books)
        info = CodeInfo.of(codec, audio.shape[1], n_codebooks=books)
        write_codes(tmp_path / "a.muc", codes[0].numpy(), info)
        found, again = read_codes(tmp_path / "a.muc")
        assert again == info and np.array_equal(found, codes[0])
        assert info.model == quantizer_digest(codec.rvq, 2, "stack")
        assert (info.n_codebooks, info.codebook_size, info.mel) == (books or 2, 8, mel)
        assert (info.frames_per_code, info.pooling, info.source_frames) == (2, "stack", 0)
    info = CodeInfo.of(codec, 501, source_rate=44100, source_frames=2762)
    assert (info.source_rate, info.source_frames) == (44100, 2762)
    for wrong, kind, message in (
        ((rvq, 501), TypeError, "codec: expected a SpeechCodec, got RVQ"),
        ((codec, 0), ValueError, "length: expected"),
        ((codec, 501, 3), ValueError, "n_codebooks: expected an integer from 1 to 2, got 3"),
    ):
        with pytest.raises(kind, match=message):
            CodeInfo.of(*wrong)


def test_the_documented_arrays():
    """The table of what `.npz` and `.parquet` hold has every name."""
    page = (ROOT / "docs" / "code-files.md").read_text().split("## To train on")[1]
    names = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.M)))
    assert sorted(names) == sorted(["codes", *fields_of(INFO)])
