"""What a finished run shows: loss curves, mel pictures, audio of held-out clips, a table.

What is particular to a stage comes from the stage.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..atomic import make_folder, shortened, write_atomically
from ..audio.files import write_audio
from ..audio.mel import MelConfig, log_mel
from ..vocoder.griffin_lim import GriffinLimVocoder
from .config import TrainConfig
from .data import HeldOut
from .metrics import read_metrics
from .registry import STAGES
from .run_folder import RunFolder
from .stage import Ways

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_CLIPS = 3
LONGEST_STEM = 100  # bytes of a clip's name in the names of files: those have at most 255
LEVEL_LIMIT = 6.0  # dB between a reconstruction and its original


def level_db(audio: Tensor) -> float:
    """Root-mean-square level in dB relative to full scale."""
    return 10 * math.log10(float(audio.double().square().mean()) + 1e-20)


def ways_to_hear(config: TrainConfig, products: dict[str, Any]) -> Ways:
    """Every way that the finished stages allow to hear a clip."""
    griffin_lim = GriffinLimVocoder(config.mel)
    ways: Ways = {
        "original": lambda clip: clip.audio,
        "mel-griffin-lim": lambda clip: griffin_lim(clip.mel[None])[0],
    }
    for name in products:
        ways |= STAGES[name].heard(config, products)
    return ways


@torch.no_grad()
def resynthesise(
    clip: HeldOut, config: TrainConfig, products: dict[str, Any], ways: Ways
) -> dict[str, Tensor]:
    """A clip heard all those ways, and what else is said of it: name -> (L,)."""
    heard = {name: way(clip)[: len(clip.audio)] for name, way in ways.items()}
    for name in products:
        heard |= STAGES[name].said(clip, config, products)
    return heard


def write_report(
    folder: RunFolder,
    config: TrainConfig,
    products: dict[str, Any],
    clips: Sequence[HeldOut],
    trained: Sequence[HeldOut] = (),
) -> str:
    """Write audio, pictures and `report.txt` into the run's folder; returns the report's text.

    Args:
        folder: the run's.
        config: of the run.
        products: of finished stages.
        clips: held out, of which some are shown.
        trained: clips of the training data to show besides.
    """
    lines = [f"run folder: {folder.path}", ""]
    make_folder(folder.path / "audio")
    ways = ways_to_hear(config, products)
    lines += _clip_lines(folder, config, products, ways, _spread(clips), "held-out clip", "")
    if trained:
        lines += _clip_lines(folder, config, products, ways, trained, "training clip", "training-")
    plot_losses(folder.path / "losses.png", {s: read_metrics(folder.metrics(s)) for s in products})
    for name, results in folder.results().items():
        lines += [*STAGES[name].report(results), _speed(results), ""]
    text = "\n".join(lines) + "\n"
    write_atomically(folder.path / "report.txt", text.encode())
    return text


def _spread(clips: Sequence[HeldOut]) -> list[HeldOut]:
    """SHOWN_CLIPS of the clips, of different speakers first."""
    order = sorted(range(len(clips)), key=lambda i: (_rank_in_speaker(clips, i), i))
    return [clips[i] for i in order[:SHOWN_CLIPS]]


def _rank_in_speaker(clips: Sequence[HeldOut], index: int) -> int:
    return sum(held.clip.speaker == clips[index].clip.speaker for held in clips[:index])


def _clip_lines(
    folder: RunFolder,
    config: TrainConfig,
    products: dict[str, Any],
    ways: Ways,
    clips: Sequence[HeldOut],
    what: str,
    prefix: str,
) -> list[str]:
    lines = [
        f"{what:<44}{'samples':>9}{'level dB':>10}{'to original':>13}  (!) over {LEVEL_LIMIT:g} dB"
    ]
    for number, clip in enumerate(clips, start=1):
        stem = f"{prefix}{number}-{shortened(clip.clip.path.stem, LONGEST_STEM)}"
        heard = resynthesise(clip, config, products, ways)
        original = level_db(clip.audio)
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

    panels = {}
    for stage, rows in metrics.items():
        hidden = ("step", "steps_per_second", *STAGES[stage].unplotted)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        names = [c for c in columns if c not in hidden and not c.startswith("held_out_")]
        panels[stage] = names
    width = max(len(names) for names in panels.values())
    figure = Figure(figsize=(3.2 * width, 2.8 * len(panels)))
    axes = figure.subplots(len(panels), width, squeeze=False)
    _spaced(figure, axes.shape, (0.6, 0.15, 0.5, 0.35), 0.6, 0.75)
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
    _save(figure, path, 120)


def plot_mels(path: Path, mels: dict[str, Tensor], config: MelConfig) -> None:
    """Log-mels (n_mels, T) one above the other on one colour scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.7 * len(mels)))
    axes = figure.subplots(len(mels), 1, sharex=True, squeeze=False)[:, 0]
    _spaced(figure, (len(mels), 1), (0.55, 1.1, 0.45, 0.3), 0.0, 0.4)
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
    bottom, top = axes[-1].get_position().y0, axes[0].get_position().y1
    scale = figure.add_axes((1 - 0.95 / 9, bottom, 0.2 / 9, top - bottom))
    figure.colorbar(image, cax=scale, label="log mel magnitude")
    _save(figure, path, 110)


def _spaced(
    figure: "Figure",
    panels: tuple[int, int],
    margins: tuple[float, float, float, float],
    beside: float,
    below: float,
) -> None:
    """Room around and between panels, in inches; having matplotlib find how much takes twice as
    long as drawing.

    Args:
        figure: with its size.
        panels: rows, columns.
        margins: left, right, bottom, top.
        beside, below: between panels.
    """
    left, right, bottom, top = margins
    width, height = figure.get_size_inches()
    rows, columns = panels
    panel_width = (width - left - right - beside * (columns - 1)) / columns
    panel_height = (height - bottom - top - below * (rows - 1)) / rows
    figure.subplots_adjust(
        left / width,
        bottom / height,
        1 - right / width,
        1 - top / height,
        beside / panel_width,
        below / panel_height,
    )


def _save(figure: "Figure", path: Path, dpi: int) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=dpi, format="png")
    write_atomically(path, picture.getvalue())
