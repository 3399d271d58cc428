"""A vocoder run while the mel arrives: `python examples/stream.py [--run RUN]`.

Prints how long the first audio takes, what a chunk costs, and how far the joined pieces are from
the audio of the whole mel. Weights come from a training run or from published HiFi-GAN files.
Without either they are random: the times are the same, and there is nothing to listen to, so no
audio is written. Needs the `train` extra, for reading audio.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import soundfile
import soxr
import torch
from torch import Tensor

import muomni_fast as mf

SPEECH = Path(__file__).resolve().parents[1] / "reference" / "speech" / "wavs"


def load(options: argparse.Namespace) -> tuple[mf.HiFiGANVocoder, mf.MelConfig]:
    """The generator that the command line asks for, and the mel settings it takes."""
    if options.run is not None:
        loaded = mf.NeuralVocoder(options.run / "checkpoints" / "vocoder.json")
        return loaded.vocoder, loaded.config
    if options.config is not None and options.weights is not None:
        vocoder = mf.HiFiGANVocoder.from_hifigan(options.config, options.weights)
        return vocoder, mf.MelConfig.from_hifigan(options.config)
    print("no weights given: random ones, for their times only")
    return mf.HiFiGANVocoder(), mf.MelConfig()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, help="folder that training left")
    parser.add_argument("--config", type=Path, help="config.json of a published HiFi-GAN")
    parser.add_argument("--weights", type=Path, help="its generator, as published")
    parser.add_argument("--audio", type=Path, help="default: a clip of the repository's")
    parser.add_argument("--chunk", type=int, default=16, help="mel frames that arrive at once")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="WAV to write, where weights are given")
    options = parser.parse_args(argv)

    torch.manual_seed(0)
    vocoder, config = load(options)
    vocoder = vocoder.to(options.device).eval().prepare()

    audio, rate = soundfile.read(
        options.audio or min(SPEECH.glob("*.flac")), dtype="float32", always_2d=True
    )
    audio = torch.from_numpy(soxr.resample(audio.mean(1), rate, config.sample_rate))[None]
    mel = mf.log_mel(audio, config).to(options.device)  # (1, n_mels, T)

    pieces: list[Tensor] = []
    times = [time.perf_counter()]
    for piece in vocoder.stream(mel.split(options.chunk, dim=2)):
        pieces.append(piece.cpu())  # waits for the device
        times.append(time.perf_counter())
    waits = [after - before for before, after in pairwise(times)]
    took = times[-1] - times[0]

    joined = torch.cat(pieces, 1)
    with torch.no_grad():
        whole = vocoder(mel).cpu()
    seconds = joined.shape[1] / config.sample_rate
    latency = vocoder.stream_latency(config.sample_rate)
    chunk_ms = 1e3 * options.chunk / config.frame_rate
    print(f"{latency.frames} frames = {latency.milliseconds:.0f} ms: how far audio lags behind mel")
    print(f"{1e3 * waits[0]:.1f} ms from the first mel to the first audio, computing alone")
    print(f"{1e3 * statistics.median(waits):.1f} ms to compute a chunk of {chunk_ms:.0f} ms")
    print(f"{seconds:.2f} s of audio in {took:.2f} s, {seconds / took:.1f} x real time")
    print(f"largest difference from the whole mel's audio: {(joined - whole).abs().max():.1e}")
    if options.out is not None:
        if options.run is None and options.weights is None:
            parser.error("--out: nothing is written without weights; give --run or --weights")
        soundfile.write(options.out, joined[0].clamp(-1, 1).numpy(), config.sample_rate)
        print(f"written: {options.out}")


if __name__ == "__main__":
    main()
