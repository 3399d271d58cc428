"""Where mels come from: files of codes, audio through the codec, audio or mels as they are."""

import contextlib
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..code_files import CodeInfo, read_codes
from ..codec import SpeechCodec
from ..reference.audio.files import audio_blocks, audio_info
from ..reference.audio.mel import MelConfig
from ..reference.audio.mel_blocks import mel_blocks
from ..reference.codec import decode_mel
from ..reference.errors import AudioFormatError, CodeFileError
from .encoding import Clip, block_frames, rows_of
from .existing import digest
from .models import Coder
from .places import Pair
from .rendering import Sound, digest_of_file


def of_codes(pair: Pair, coder: Coder, n_codebooks: int | None) -> Sound:
    """The sound of a file of codes.

    Raises:
        CodeFileError: it cannot be read, or its codes are another model's.
    """
    if pair.source.suffix.lower() in (".npz", ".parquet"):
        kind = pair.source.suffix.lower()
        what = f"{'an' if kind == '.npz' else 'a'} {kind} is for training"
        raise CodeFileError(f"{pair.source}: {what}; encode with --format muc to decode")
    codes, info = read_codes(pair.source)
    _require_same_model(pair.source, info, coder)
    if n_codebooks is not None and n_codebooks > info.n_codebooks:
        got = f"{info.n_codebooks} in the file"
        raise CodeFileError(f"{pair.source}: --n-codebooks: expected at most the {got}")
    books = n_codebooks or info.n_codebooks

    def mels(sound: Sound, seconds: float) -> Iterator[Tensor]:
        codes, info = read_codes(pair.source)  # once more: many files' codes are not kept
        sound.length = info.length
        yield from mels_of_codes(coder.codec, torch.from_numpy(codes[:, :books]).long(), seconds)

    made_of = {"from": "codes", "source": digest_of_file(pair.source), "n_codebooks": str(books)}
    return Sound(pair, info.seconds, mels, made_of)


def resynthesized(pair: Pair, coder: Coder, n_codebooks: int) -> Sound:
    """The sound of an audio file's codes; raises AudioFormatError."""
    header, codec = audio_info(pair.source, streamed=True), coder.codec

    def mels(sound: Sound, seconds: float) -> Iterator[Tensor]:
        clip, device = Clip(pair, header), codec.rvq.codebook_weights()[0].device
        codes = [
            codec.rvq.encode(rows.to(device), n_codebooks=n_codebooks)
            for rows in rows_of(codec, clip, pair.source)
        ]
        sound.length = clip.length
        yield from mels_of_codes(codec, torch.cat(codes), seconds)

    made_of = {
        "from": "audio",
        "source": digest_of_file(pair.source),
        "model": digest(f"{coder.digest} {codec.config}"),
        "n_codebooks": str(n_codebooks),
    }
    return Sound(pair, header.frames / header.sample_rate, mels, made_of)


def of_audio(pair: Pair, mel: MelConfig, device: torch.device) -> Sound:
    """The sound of an audio file's mel; raises AudioFormatError."""
    header = audio_info(pair.source, streamed=True)

    def mels(sound: Sound, seconds: float) -> Iterator[Tensor]:
        def counted() -> Iterator[Tensor]:
            for block in audio_blocks(pair.source, mel.sample_rate):
                sound.length += len(block)
                yield torch.from_numpy(block)

        sound.length = 0
        frames = max(1, round(seconds * mel.frame_rate))
        for part in mel_blocks(counted(), mel, frames):
            yield part.to(device)
        if sound.length == 0:
            raise AudioFormatError(f"{pair.source}: too short, no sample is left")

    made_of = {"from": "audio's-mel", "source": digest_of_file(pair.source)}
    return Sound(pair, header.frames / header.sample_rate, mels, made_of)


def of_mel(pair: Pair, mel: MelConfig, device: torch.device) -> Sound:
    """The sound of a log-mel (n_mels, T) that numpy saved.

    Raises:
        AudioFormatError: the file is no such array.
    """
    frames = _open_mel(pair.source, mel).shape[1]

    def mels(sound: Sound, seconds: float) -> Iterator[Tensor]:
        array = _open_mel(pair.source, mel)
        sound.length = array.shape[1] * mel.hop_length
        size = max(1, round(seconds * mel.frame_rate))
        for start in range(0, array.shape[1], size):
            part = np.array(array[:, start : start + size], np.float32)
            if not np.isfinite(part).all():
                raise AudioFormatError(f"{pair.source}: holds NaN or infinite values")
            yield torch.from_numpy(part).to(device)

    made_of = {"from": "mel", "source": digest_of_file(pair.source)}
    return Sound(pair, frames / mel.frame_rate, mels, made_of)


@torch.no_grad()
def mels_of_codes(codec: SpeechCodec, codes: Tensor, seconds: float) -> Iterator[Tensor]:
    """The mel of codes (S, k), (n_mels, t) for about so many seconds at a time: joined, the whole
    one's, as a frame depends on no more than the codes beside its own."""
    per_code, codec_of = codec.frames_per_code, (codec.frames_per_code, codec.pooling)
    size = block_frames(codec, seconds) // per_code
    codes = codes.to(codec.rvq.codebook_weights()[0].device)
    for start in range(0, len(codes), size):
        first = max(0, start - 1)
        mel = decode_mel(codec.rvq, codes[first : start + size + 1], *codec_of)
        begin = (start - first) * per_code
        yield mel[:, begin : begin + size * per_code]


def seconds_of(paths: Iterable[Path]) -> float:
    """About how much audio there is, for a progress bar: of files that can be read."""
    seconds = 0.0
    for path in paths:
        with contextlib.suppress(AudioFormatError):
            header = audio_info(path, streamed=True)
            seconds += header.frames / header.sample_rate
    return seconds


def _require_same_model(path: Path, info: CodeInfo, coder: Coder) -> None:
    codec = coder.codec
    expected = (coder.digest, codec.config, codec.frames_per_code, codec.pooling)
    found = (info.model, info.mel, info.frames_per_code, info.pooling)
    names = "model", "mel", "frames_per_code", "pooling"
    for name, here, there in zip(names, expected, found, strict=True):
        if here != there:
            raise CodeFileError(
                f"{path}: was encoded by another model: its {name} is {there}, this one's {here}"
            )


def _open_mel(path: Path, mel: MelConfig) -> np.ndarray:
    """The array in a file, which stays on disk."""
    try:
        if not path.is_file():  # reading a pipe may never end
            raise OSError("no such file" if not path.exists() else "not a regular file")
        array = np.lib.format.open_memmap(path, mode="r")
    except (EOFError, OSError, SyntaxError, ValueError, tokenize.TokenError) as error:
        raise AudioFormatError(f"{path}: not an array that numpy saved: {error}") from error
    if array.dtype.kind != "f":
        raise AudioFormatError(f"{path}: expected one array of floats")
    if array.ndim != 2 or array.shape[0] != mel.n_mels or array.shape[1] == 0:
        expected = f"({mel.n_mels}, T >= 1)"
        raise AudioFormatError(f"{path}: expected a log-mel {expected}, got {array.shape}")
    return array
