"""Audio files whose headers say what is not so."""

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from muomni_fast import AudioFormatError
from muomni_fast.reference.audio.files import DECLARING, audio_info, read_audio

soundfile = pytest.importorskip("soundfile")
from support.audio_files import KINDS, RATE, TONE, encoded, write  # noqa: E402
from support.fuzz_audio import fuzz_audio  # noqa: E402


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("vorbis.ogg", "a.opus")])
def test_truncated_files(tmp_path, kind):
    """All but Ogg say how long they are. MP3 need not, but the encoder here does."""
    path, content = tmp_path / kind, encoded(kind, TONE)
    for end in (40, 90, len(content) // 3, len(content) // 2, len(content) - 2):
        path.write_bytes(content[:end])
        with pytest.raises(AudioFormatError, match=f"^{path}: "):
            read_audio(path)
    why = {"FLAC": "not readable", "CAF": "not readable", "MP3": "declares 16,000 frames, holds"}
    path.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(AudioFormatError, match=why.get(KINDS[kind][0], "truncated: declares")):
        read_audio(path)


def test_mp3_that_declares_no_length(tmp_path):
    """Its length is worked out from its bit rate, and that is right where it is constant."""
    path = tmp_path / "a.mp3"
    soundfile.write(path, TONE, RATE, bitrate_mode="CONSTANT", compression_level=0.5)
    content = path.read_bytes()
    content = content[content.index(content[:2], 4) :]  # without the Info header
    lengths = []
    for share in (1, 0.5):
        path.write_bytes(content[: int(len(content) * share)])
        lengths.append(len(read_audio(path)[0]))
    assert abs(lengths[0] - len(TONE)) < 2000 and abs(lengths[1] - len(TONE) / 2) < 2000


def test_ogg_that_ends_early(tmp_path):
    content = encoded("a.opus", np.tile(TONE, 10))
    (tmp_path / "a.opus").write_bytes(content[: len(content) // 2])
    assert 0.3 < len(read_audio(tmp_path / "a.opus")[0]) / (10 * len(TONE)) < 0.7


def test_other_containers_are_refused_by_name(tmp_path):
    """Not read on trust, nor guessed at by their extension."""
    for container in ("SVX", "VOC", "NIST", "IRCAM", "MAT5", "PAF"):
        soundfile.write(tmp_path / "a.wav", TONE, RATE, "PCM_16", format=container)
        with pytest.raises(AudioFormatError, match=f"container {container} is not supported"):
            read_audio(tmp_path / "a.wav")
    for name in ("a.raw", "a.au", "a.vox", "a.gsm"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 20)
        with pytest.raises(AudioFormatError, match=f"{name}: not readable as audio: Format not"):
            read_audio(tmp_path / name)
    for name in ("IMA_ADPCM", "MS_ADPCM", "GSM610"):
        with pytest.raises(AudioFormatError, match=f"sample format {name} is not supported"):
            read_audio(write(tmp_path / "a.wav", subtype=name))
    riff = write(tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(b"ID3\x03\0\0\0\0\0\x0a" + bytes(10) + riff[: len(riff) // 2])
    with pytest.raises(AudioFormatError, match="something else precedes its header: b'ID3"):
        read_audio(tmp_path / "a.wav")


def header(data_bytes: int, bits: int = 16, rate: int = RATE, channels: int = 1) -> bytes:
    block = channels * bits // 8
    fmt = struct.pack("<HHIIHH", 1, channels, rate, rate * block & 0xFFFFFFFF, block, bits)
    riff = b"RIFF" + struct.pack("<I", 0x24) + b"WAVEfmt " + struct.pack("<I", 16) + fmt
    return riff + b"data" + struct.pack("<I", data_bytes)


def test_hostile_headers(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(header(0xFFFFFFF0) + bytes(1000))
    with pytest.raises(
        AudioFormatError, match="declares 4,294,967,280 bytes of samples, holds 1,000"
    ):
        read_audio(path)
    path.write_bytes(header(1000, bits=7) + bytes(1000))
    with pytest.raises(AudioFormatError, match="7 bits"):
        read_audio(path)
    for rate in (0, 12, 4_000_000):
        path.write_bytes(header(1000, rate=rate) + bytes(1000))
        with pytest.raises(AudioFormatError, match=r"a\.wav"):
            read_audio(path)


# AU's header names a sample format, and no bits.
@pytest.mark.parametrize("kind", [k for k in KINDS if KINDS[k][0] in DECLARING - {"AU"}])
def test_odd_bit_depths(tmp_path, kind):
    """libsndfile takes 7 bits for 8."""
    container, subtype, _ = KINDS[kind]
    path, content = tmp_path / kind, bytearray(encoded(kind, TONE))
    bits = {"PCM_16": 16, "PCM_24": 24, "FLOAT": 32, "DOUBLE": 64}.get(subtype, 8)
    chunk, offset, order = {"AIFF": (b"COMM", 14, ">H"), "CAF": (b"desc", 40, ">I")}.get(
        container, (b"fmt ", 38 if container == "W64" else 22, ">H" if kind == "big.wav" else "<H")
    )
    at = content.index(chunk) + offset
    assert struct.unpack_from(order, content, at)[0] == bits
    struct.pack_into(order, content, at, bits - 1)
    path.write_bytes(content)
    with pytest.raises(AudioFormatError, match=f"^{path}: "):
        read_audio(path)


def test_seven_bits_in_either_order(tmp_path):
    path = tmp_path / "a.wav"
    for order, magic in (("<", b"RIFF"), (">", b"RIFX")):
        fmt = struct.pack(order + "IHHIIHH", 16, 1, 1, RATE, RATE, 1, 7)
        data = b"data" + struct.pack(order + "I", 1000) + bytes(1000)
        path.write_bytes(magic + struct.pack(order + "I", 1036) + b"WAVEfmt " + fmt + data)
        with pytest.raises(AudioFormatError, match="7 bits per sample are not supported"):
            read_audio(path)


def test_headers_of_pipes(tmp_path):
    """A length that was not known, as what writes into a pipe says, is the rest of the file."""
    for kind, at in (("pcm16.wav", 40), ("big.wav", 40), ("a.au", 8), ("little.au", 8)):
        path, content = tmp_path / kind, encoded(kind, TONE)
        path.write_bytes(content[:at] + b"\xff" * 4 + content[at + 4 :])
        assert audio_info(path).frames == len(TONE)
        assert np.abs(read_audio(path)[0] - TONE).max() < 1e-4
        path.write_bytes(content[:at] + bytes(4) + content[at + 4 :])
        with pytest.raises(AudioFormatError, match="holds no samples"):
            read_audio(path)
    pipe = bytearray(encoded("pcm16.wav", TONE))  # as ffmpeg writes it
    pipe[4:8] = pipe[40:44] = b"\xff" * 4
    pipe[36:36] = b"LIST\x1a\0\0\0INFOISFT\x0d\0\0\0Lavf59.27.100\0"
    (tmp_path / "a.wav").write_bytes(pipe)
    assert np.abs(read_audio(tmp_path / "a.wav")[0] - TONE).max() < 1e-4
    flac = bytearray(encoded("a.flac", TONE))
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(flac)
    with pytest.raises(AudioFormatError, match=r"a\.flac: declares no length"):
        read_audio(tmp_path / "a.flac")


def test_two_lengths_in_one_header(tmp_path):
    content = bytearray(encoded("a.aiff", TONE))
    struct.pack_into(">I", content, content.index(b"COMM") + 10, 15_000)
    (tmp_path / "a.aiff").write_bytes(content)
    with pytest.raises(AudioFormatError, match="declares 15,000 frames, 16,000 were found"):
        read_audio(tmp_path / "a.aiff")


@pytest.mark.parametrize("chunk", [bytes(8), b"abcd" + bytes(4), b"fact\4\0\0\0\1\0\0\0"])
def test_chunks_without_end(tmp_path, chunk):
    """The samples come after 64 MB of chunks; looking for them takes no time."""
    whole = write(tmp_path / "a.wav").read_bytes()
    with open(tmp_path / "b.wav", "wb") as file:
        file.write(whole[:36])
        for _ in range(64):
            file.write(chunk * ((1 << 20) // len(chunk)))
        file.write(whole[36:])
    start = time.perf_counter()
    with pytest.raises(AudioFormatError, match=r"b\.wav: "):
        read_audio(tmp_path / "b.wav")
    assert time.perf_counter() - start < 2


def test_chunks_before_the_samples(tmp_path):
    """Any that are not known are passed over, with their padding, up to a thousand."""

    def with_chunk(kind: str, samples: bytes, chunk: bytes) -> Path:
        content = encoded(kind, TONE)
        at = content.index(samples)
        (tmp_path / kind).write_bytes(content[:at] + chunk + content[at:])
        return tmp_path / kind

    little, big = (struct.pack(order + "4sI4s", b"abcd", 3, b"xyz") for order in "<>")
    caf = struct.pack(">4sQ3s", b"abcd", 3, b"xyz")
    guid = encoded("a.w64", TONE)[44:56]  # how all of W64's names end
    w64 = struct.pack("<4s12sQ8s", b"abcd", guid, 24 + 3, b"xyz")
    for kind, samples, chunk in (
        ("pcm16.wav", b"data", little),
        ("big.wav", b"data", big),
        ("a.aiff", b"SSND", big),
        ("a.caf", b"data", caf),
        ("a.w64", b"data", w64),
    ):
        assert len(read_audio(with_chunk(kind, samples, chunk))[0]) == len(TONE)
    with pytest.raises(AudioFormatError, match="more than 1,000 chunks before its samples"):
        read_audio(with_chunk("pcm16.wav", b"data", 1000 * little))
    far = struct.pack("<4s12sQ", b"abcd", guid, (1 << 64) - 24)
    with pytest.raises(AudioFormatError, match=r"a\.w64: .*its header leads past its end"):
        read_audio(with_chunk("a.w64", b"data", far))


def test_headers_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("muomni_fast.reference.audio.files.MAX_SAMPLES", 20_000)
    stereo = np.stack([TONE, TONE], 1)
    with pytest.raises(AudioFormatError, match="declares 32,000 samples, more than 20,000"):
        audio_info(write(tmp_path / "a.flac", stereo))
    assert audio_info(write(tmp_path / "b.flac")).frames == RATE


def test_memory_follows_what_a_file_holds(tmp_path):
    """Not what it declares: here an hour."""
    content = bytearray(encoded("a.flac", TONE))
    content[21] &= 0xF0
    content[22:26] = struct.pack(">I", 3600 * RATE)
    (tmp_path / "a.flac").write_bytes(content)
    assert audio_info(tmp_path / "a.flac").frames == 3600 * RATE
    tracemalloc.start()
    try:
        with pytest.raises(AudioFormatError, match=r"a\.flac: "):
            read_audio(tmp_path / "a.flac")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20  # of 230 MB
    finally:
        tracemalloc.stop()


def test_too_many_channels(tmp_path):
    with pytest.raises(AudioFormatError, match="65 channels are not plausible"):
        audio_info(write(tmp_path / "a.wav", np.zeros((100, 65))))
    assert audio_info(write(tmp_path / "a.wav", np.zeros((100, 64)))).channels == 64


def test_hours_are_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr("muomni_fast.reference.audio.files.MAX_SECONDS", 0.5)
    with pytest.raises(AudioFormatError, match="declares 1 s"):
        audio_info(write(tmp_path / "a.wav"))


def test_broken_files_are_read_right_or_refused(tmp_path):
    """A hundred of every container; `make fuzz` reads more."""
    figures = fuzz_audio(100, 0, tmp_path)
    assert figures.files == 100 and figures.read > 15 and figures.refused > 40, str(figures)
