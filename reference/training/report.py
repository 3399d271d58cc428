"""What a finished run shows: loss curves, mel pictures, audio of held-out clips, a table."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..atomic import write_atomically
from ..audio.files import write_audio
from ..audio.mel import MelConfig, log_mel, pool_frames
from ..codec import SpeechCodec
from ..rvq.quantizer import RVQ
from ..vocoder.griffin_lim import GriffinLimVocoder
from .clips import Clip
from .codebook_health import start_from_data
from .data import SpeechDataset
from .presets import TrainConfig
from .run_folder import RunFolder, read_metrics
from .rvq_stage import validate_rvq
from .trainer import START_FRAMES

SHOWN_CLIPS = 3
EQUAL_BITS = ((2, 16), (1, 256))  # codebooks, codes each: 8 bits per frame both
LEVEL_LIMIT = 6.0  # dB between a reconstruction and its original


@torch.no_grad()
def compare_sizes(
    config: TrainConfig,
    data: SpeechDataset,
    held_out: Sequence[Tensor],
    own_start: dict[str, float],
) -> dict[str, dict[str, float]]:
    """Held-out figures at the PCA + k-means start of several sizes of quantizer.

    One codebook, the config's number of them (`own_start`, known from training), and two small
    quantizers of equal bits; one codebook with all of the config's bits would have more codes than
    there are frames.
    """
    frames = pool_frames(data.frames(START_FRAMES), config.frames_per_code)
    own = RVQ(**config.rvq)
    own_size = (own.n_codebooks, own.codebook_size)
    figures = {}
    for n_codebooks, size in dict.fromkeys([(1, own.codebook_size), own_size, *EQUAL_BITS]):
        name = f"{n_codebooks} x {size}"
        if (n_codebooks, size) == own_size:
            figures[name] = own_start
            continue
        rvq = RVQ(**(config.rvq | {"n_codebooks": n_codebooks, "codebook_size": size}))
        start_from_data(rvq, frames, torch.Generator().manual_seed(config.seed))
        figures[name] = validate_rvq(rvq, held_out, config.frames_per_code)
    return figures


def level_db(audio: Tensor) -> float:
    """Root-mean-square level in dB relative to full scale."""
    return 10 * math.log10(float(audio.double().square().mean()) + 1e-20)


@torch.no_grad()
def resynthesise(
    audio: Tensor, mel: Tensor, config: TrainConfig, products: dict[str, Any]
) -> dict[str, Tensor]:
    """One clip (L,), its log-mel (n_mels, T), heard every way the products allow: name -> (L,)."""
    vocoders: dict[str, nn.Module] = {"griffin-lim": GriffinLimVocoder(config.mel)}
    if "vocoder" in products:
        vocoders["hifigan"] = products["vocoder"]
    heard = {"original": audio}
    for name, vocoder in vocoders.items():
        heard[f"mel-{name}"] = vocoder(mel[None])[0]
    if "rvq" in products:
        for name, vocoder in vocoders.items():
            codec = SpeechCodec(products["rvq"], vocoder, config.mel, config.frames_per_code)
            heard[f"codec-{name}"] = codec.decode(codec.encode(audio[None]))[0]
    return {name: sound[: len(audio)] for name, sound in heard.items()}


def write_report(
    folder: RunFolder,
    config: TrainConfig,
    products: dict[str, Any],
    clips: Sequence[tuple[Clip, Tensor, Tensor]],
) -> str:
    """Write audio, pictures and `report.txt` into the run's folder; returns the report's text."""
    lines = [f"run folder: {folder.path}", ""]
    (folder.path / "audio").mkdir(exist_ok=True)
    lines += _clip_lines(folder, config, products, _spread(clips))
    plot_losses(folder.path / "losses.png", {s: read_metrics(folder.metrics(s)) for s in products})
    lines += _table(folder.results())
    text = "\n".join(lines) + "\n"
    write_atomically(folder.path / "report.txt", text.encode())
    return text


def _spread(clips: Sequence[tuple[Clip, Tensor, Tensor]]) -> list[tuple[Clip, Tensor, Tensor]]:
    """SHOWN_CLIPS of the clips, of different speakers first."""
    order = sorted(range(len(clips)), key=lambda i: (_rank_in_speaker(clips, i), i))
    return [clips[i] for i in order[:SHOWN_CLIPS]]


def _rank_in_speaker(clips: Sequence[tuple[Clip, Tensor, Tensor]], index: int) -> int:
    return sum(clip.speaker == clips[index][0].speaker for clip, _, _ in clips[:index])


def _clip_lines(
    folder: RunFolder,
    config: TrainConfig,
    products: dict[str, Any],
    clips: Sequence[tuple[Clip, Tensor, Tensor]],
) -> list[str]:
    lines = [
        f"{'held-out clip':<44}{'samples':>9}{'level dB':>10}{'to original':>13}"
        f"  (!) over {LEVEL_LIMIT:g} dB"
    ]
    for number, (clip, audio, mel) in enumerate(clips, start=1):
        stem = f"{number}-{clip.path.stem}"
        heard = resynthesise(audio, mel, config, products)
        original = level_db(audio)
        for name, sound in heard.items():
            path = folder.path / "audio" / f"{stem}-{name}.wav"
            write_audio(path, sound.numpy(), config.mel.sample_rate)
            level = level_db(sound)
            mark = "" if abs(level - original) <= LEVEL_LIMIT else "  (!)"
            lines.append(
                f"{path.name:<44}{len(sound):>9}{level:>10.1f}{level - original:>+13.1f}{mark}"
            )
        mels = {name: log_mel(sound, config.mel) for name, sound in heard.items()}
        plot_mels(folder.path / f"mels-{stem}.png", mels, config.mel)
    return [*lines, ""]


def _table(results: dict[str, Any]) -> list[str]:
    """The closing table: held-out figures of every stage in `results`."""
    lines: list[str] = []
    if "rvq" in results:
        rvq = results["rvq"]
        n = len([key for key in rvq["trained"] if key.startswith("usage_")])
        lines.append(
            f"{'quantizer, held-out log-mel':<34}{'MSE':>8}{'L1':>8}   use and perplexity by stage"
        )
        rows = {
            "random weights": rvq["random"],
            "PCA + k-means start": rvq["start"],
            "trained": rvq["trained"],
        }
        rows |= {f"PCA + k-means start, {size}": f for size, f in rvq["sizes"].items()}
        for name, figures in rows.items():
            stages = [
                f"{figures[f'usage_{i}']:.0%} {figures[f'perplexity_{i}']:.0f}"
                for i in range(1, n + 1)
                if f"usage_{i}" in figures
            ]
            use = ", ".join(stages)
            lines.append(f"{name:<34}{figures['mel_mse']:>8.3f}{figures['mel_l1']:>8.3f}   {use}")
        lines += [_speed(rvq), ""]
    if "vocoder" in results:
        vocoder = results["vocoder"]
        lines.append(f"{'vocoder, held-out log-mel':<34}{'L1':>8}")
        for name, key in (("random weights", "random"), ("trained", "trained")):
            lines.append(f"{name:<34}{vocoder[key]['mel_l1']:>8.3f}")
        lines += [_speed(vocoder), ""]
    return lines


def _speed(results: dict[str, Any]) -> str:
    speed = results["steps_per_second"]
    skipped = results["skipped"]
    pace = f", {speed:.2f} steps/s" if speed else ""
    return (
        f"{results['steps']} steps{pace}; "
        f"skipped: {skipped['steps']} steps, {skipped['clips']} clips"
    )


def plot_losses(path: Path, metrics: dict[str, list[dict[str, str]]]) -> None:
    """Loss curves: a row of panels per stage, one panel per figure, held-out points on top."""
    from matplotlib.figure import Figure

    hidden = ("step", "steps_per_second", "revived")
    panels = {}
    for stage, rows in metrics.items():
        columns = list(dict.fromkeys(name for row in rows for name in row))
        names = [c for c in columns if c not in hidden and not c.startswith("held_out_")]
        panels[stage] = names
    width = max(len(names) for names in panels.values())
    figure = Figure(figsize=(3.2 * width, 2.8 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), width, squeeze=False)
    for row, (stage, names) in enumerate(panels.items()):
        for column in range(width):
            axis = axes[row][column]
            if column >= len(names):
                axis.axis("off")
                continue
            name = names[column]
            for key, style in ((name, "-"), (f"held_out_{name}", "o-")):
                points = [(int(r["step"]), float(r[key])) for r in metrics[stage] if r.get(key)]
                if points:
                    label = "held out" if key != name else "training"
                    axis.plot(*zip(*points, strict=True), style, linewidth=1, label=label)
            axis.set_title(f"{stage}: {name}", fontsize=9)
            axis.set_xlabel("step", fontsize=8)
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.3)
            if len(axis.lines) > 1:
                axis.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def plot_mels(path: Path, mels: dict[str, Tensor], config: MelConfig) -> None:
    """Log-mels (n_mels, T) one above the other on one colour scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.7 * len(mels)), layout="constrained")
    axes = figure.subplots(len(mels), 1, sharex=True, squeeze=False)[:, 0]
    low = math.log(config.log_floor)
    high = max(float(mel.max()) for mel in mels.values())
    for axis, (name, mel) in zip(axes, mels.items(), strict=True):
        extent = (0, mel.shape[1] / config.frame_rate, 0, config.n_mels)
        image = axis.imshow(
            mel.numpy(), origin="lower", aspect="auto", extent=extent, vmin=low, vmax=high
        )
        axis.set_title(name, fontsize=9)
        axis.set_ylabel("mel band", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[-1].set_xlabel("seconds", fontsize=8)
    figure.colorbar(image, ax=list(axes), label="log mel magnitude")
    figure.savefig(path, dpi=110)
