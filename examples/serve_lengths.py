"""Requests of different lengths in one batch: `python examples/serve_lengths.py [--run RUN]`.

Pads mels of several clips to one length, generates all of them in one call with `lengths=`, and
checks that every item is what it is alone. Without `--run` the weights are random, which this check
does not mind. Needs the `train` extra, for reading audio.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import soundfile
import soxr
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import muomni_fast as mf

SPEECH = Path(__file__).resolve().parents[1] / "reference" / "speech" / "wavs"


def mel_of(path: Path, config: mf.MelConfig) -> Tensor:
    """The log-mel of a file: (T, n_mels)."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = torch.from_numpy(soxr.resample(audio.mean(1), rate, config.sample_rate))
    return mf.log_mel(mono[None], config)[0].T


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("audio", nargs="*", type=Path, help="default: four clips of the repository")
    parser.add_argument("--run", type=Path, help="folder that training left")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(argv)

    torch.manual_seed(0)
    if options.run is None:
        print("no --run: random weights")
        vocoder, config = mf.HiFiGANVocoder(upsample_initial_channel=64), mf.MelConfig()
    else:
        loaded = mf.NeuralVocoder(options.run / "checkpoints" / "vocoder.json")
        vocoder, config = loaded.vocoder, loaded.config
    vocoder = vocoder.to(options.device).eval().prepare()

    paths = options.audio or sorted(SPEECH.glob("*.flac"))[:4]
    mels = [mel_of(path, config) for path in paths]
    lengths = torch.tensor([len(mel) for mel in mels], device=options.device)
    batch = pad_sequence(mels, batch_first=True).transpose(1, 2)  # (B, n_mels, T)
    batch = batch.to(options.device)

    began = time.perf_counter()
    audio = vocoder(batch, lengths=lengths)  # (B, T * hop)
    if audio.is_cuda:
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    seconds = int(lengths.sum()) / config.frame_rate
    print(f"{len(mels)} clips, {seconds:.1f} s of audio in {took:.2f} s")
    for path, sound, mel, frames in zip(paths, audio, mels, lengths.tolist(), strict=True):
        end = frames * config.hop_length
        alone = vocoder(mel.T[None].to(options.device))[0]
        difference = float((sound[:end] - alone).abs().max())
        assert difference <= 1e-4, f"{path.name}: {difference}"
        assert not sound[end:].any()  # silence after its end
        print(f"{path.name}: {frames} frames, difference from running alone {difference:.1e}")


if __name__ == "__main__":
    main()
