"""Speech to codes and back: `python examples/encode_decode.py [AUDIO] [--run RUN] [--out WAV]`.

With `--run` it uses the codec that `python reference/train.py --out RUN` left. Without one it fits
codebooks to the speech in this repository first, in seconds, and takes Griffin-Lim as vocoder: good
enough to hear what codes are. Needs the `train` extra, for reading audio.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import soundfile
import soxr
import torch
from torch import Tensor

import muomni_fast as mf

SPEECH = Path(__file__).resolve().parents[1] / "reference" / "speech" / "wavs"


def read(path: Path, sample_rate: int) -> Tensor:
    """A file as mono: (1, L)."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(soxr.resample(audio.mean(1), rate, sample_rate))[None]


def fit_codec(config: mf.MelConfig, n_codebooks: int = 8, size: int = 256) -> mf.SpeechCodec:
    """A codec whose codebooks are k-means of the shipped speech, each of what the last one left."""
    paths = sorted(SPEECH.glob("*.flac"))[1::4]  # one in four will do
    clips = [read(path, config.sample_rate) for path in paths]
    residual = torch.cat([mf.log_mel(clip, config)[0].T for clip in clips])  # (N, n_mels)
    rvq = mf.RVQ(n_codebooks, size, config.n_mels, config.n_mels, projections=False)
    for codebook in rvq.codebooks:
        distinct = residual.unique(dim=0)  # silence is many times the same frame
        words = distinct[torch.randperm(len(distinct))[:size]]
        for _ in range(5):
            codes = mf.functional.rvq_encode(residual, words[None])[:, 0]
            counts = codes.bincount(minlength=size)[:, None]
            means = (mf.functional.code_sums(codes, residual, size) / counts).float()
            words = torch.where(counts > 0, means, words)
        codebook.weight.data.copy_(words)
        residual = residual - words[mf.functional.rvq_encode(residual, words[None])[:, 0]]
    return mf.SpeechCodec(rvq, mf.GriffinLimVocoder(config), config)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("audio", nargs="?", type=Path, help="default: a clip of the repository's")
    parser.add_argument("--run", type=Path, help="folder that training left (default: fit one now)")
    parser.add_argument("--out", type=Path, default=Path("decoded.wav"), help="WAV to write")
    options = parser.parse_args(argv)

    torch.manual_seed(0)
    if options.run is None:
        print("no --run: fitting codebooks to the speech in this repository")
        codec = fit_codec(mf.MelConfig())
    else:
        models = options.run / "checkpoints"
        vocoder = models / "vocoder.json"
        codec = mf.SpeechCodec.from_checkpoints(
            models / "rvq.json", vocoder if vocoder.exists() else None
        )
    codec.eval()
    codec.rvq.prepare()

    audio = read(options.audio or min(SPEECH.glob("*.flac")), codec.config.sample_rate)
    codes = codec.encode(audio)  # (1, S, Q) int64
    decoded = codec.decode(codes, length=audio.shape[1])
    soundfile.write(options.out, decoded[0].clamp(-1, 1).numpy(), codec.config.sample_rate)

    seconds = audio.shape[1] / codec.config.sample_rate
    bits = codes[0].numel() * torch.tensor(codec.rvq.codebook_size).log2().item()
    print(f"{seconds:.2f} s of audio -> {codes.shape[1]} x {codes.shape[2]} codes")
    print(f"{bits / seconds:,.0f} bits per second; the first three: {codes[0, :3].tolist()}")
    print(f"decoded into {options.out}")


if __name__ == "__main__":
    main()
