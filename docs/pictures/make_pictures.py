"""Draw the pictures of the documentation: `python docs/pictures/make_pictures.py [FOLDER]`.

Each is written as SVG and PNG. The same matplotlib writes the same bytes every time.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

HERE = Path(__file__).resolve().parent
INK, GREY = "#263238", "#607d8b"
MEMORY, CHIP = "#fff3e0", "#e3f2fd"  # device memory, on chip
DATA, WORK, DOUBT = "#ffb74d", "#90caf9", "#ef9a9a"  # what moves, what is computed, what is unsure
WINNER = "#a5d6a7"


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A white sheet of `width` x `height`, in units of a tenth of an inch."""
    figure = Figure(figsize=(width / 10, height / 10), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.axis("off")
    return figure, axes


def box(
    axes: Axes,
    at: tuple[float, float],
    size: tuple[float, float],
    label: str = "",
    colour: str = "white",
    edge: str = INK,
    fontsize: float = 9,
) -> None:
    """A box with a label in its middle."""
    patch = FancyBboxPatch(
        at, *size, boxstyle="round,pad=0,rounding_size=0.6", fc=colour, ec=edge, lw=1
    )
    axes.add_patch(patch)
    middle = at[0] + size[0] / 2, at[1] + size[1] / 2
    write(axes, middle, label, ha="center", va="center", fontsize=fontsize)


def area(
    axes: Axes, at: tuple[float, float], size: tuple[float, float], label: str, colour: str
) -> None:
    """A part of the machine, named in its upper left corner."""
    patch = FancyBboxPatch(
        at, *size, boxstyle="round,pad=0,rounding_size=1.2", fc=colour, ec=GREY, lw=1, ls="--"
    )
    axes.add_patch(patch)
    corner = at[0] + 1.2, at[1] + size[1] - 1.2
    write(axes, corner, label, va="top", color=GREY, fontsize=10, fontweight="bold")


def write(axes: Axes, at: tuple[float, float], text: str, **style: object) -> None:
    """Text, 9 points unless `style` says otherwise."""
    axes.text(*at, text, **{"fontsize": 9, "color": INK, "linespacing": 1.35, **style})


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK
) -> None:
    """An arrow."""
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def path(axes: Axes, points: Sequence[tuple[float, float]], colour: str = INK) -> None:
    """Lines from point to point, the last one an arrow."""
    xs, ys = zip(*points[:-1], strict=True)
    axes.plot(xs, ys, color=colour, lw=1.4, solid_capstyle="butt", solid_joinstyle="miter")
    arrow(axes, points[-2], points[-1], colour)


def strip(axes: Axes, at: tuple[float, float], size: tuple[float, float], colours: str) -> None:
    """A row of cells; each letter names a colour: d data, w work, h halo, . white."""
    named = {"d": DATA, "w": WORK, "h": "#cfd8dc", ".": "white", "g": WINNER}
    width = size[0] / len(colours)
    for i, colour in enumerate(colours):
        cell = Rectangle((at[0] + i * width, at[1]), width, size[1], fc=named[colour], ec=INK, lw=1)
        axes.add_patch(cell)


def rvq_encode() -> Figure:
    """A tile of frames through the encoder."""
    figure, axes = canvas(100, 68)
    write(
        axes,
        (2, 65.2),
        "RVQ encode: one launch; a program keeps one tile of frames on chip",
        fontsize=13,
        fontweight="bold",
        va="center",
    )
    area(axes, (2, 2), (20, 60.5), "device memory", MEMORY)
    area(axes, (28, 2), (70, 60.5), "on chip: one program, one tile", CHIP)

    # What lies in device memory.
    box(axes, (4, 51), (16, 7), "mel frames\n(N, n_mels)", DATA)
    box(axes, (4, 41.5), (16, 7), "projection\nweights", DATA)
    box(axes, (4, 25.5), (16, 13), "codebooks\n(Q, K, D) and\ntheir centred\ntable", DATA)
    box(axes, (4, 6.5), (16, 7), "codes\n(N, Q) int64", DATA)

    # The way of a tile.
    box(axes, (31, 46), (16, 12), "1  project\nonce, float32\naccuracy", WORK)
    box(axes, (52, 46), (17, 12), "residual\nof the tile,\nfloat32", "white")
    box(
        axes,
        (31, 25.5),
        (16, 13),
        "2  score one tile\nof the codebook\nafter another\n(tensor cores)",
        WORK,
    )
    box(axes, (52, 25.5), (17, 13), "of every frame\nkeep the three\nlowest score - E", WORK)
    box(
        axes,
        (74, 46),
        (21, 12),
        "4  fetch and subtract\nthe winning codeword,\ngo to the next\ncodebook",
        WORK,
    )

    arrow(axes, (20, 54.5), (31, 54.5), DATA)
    path(axes, [(20, 45), (25.5, 45), (25.5, 49.5), (31, 49.5)], DATA)
    arrow(axes, (47, 52), (52, 52))
    path(axes, [(60.5, 46), (60.5, 42.2), (39, 42.2), (39, 38.5)])
    arrow(axes, (20, 32), (31, 32), DATA)
    arrow(axes, (47, 32), (52, 32))
    arrow(axes, (74, 52), (69, 52))
    arrow(axes, (69, 32), (74, 32))

    # The certificate.
    box(axes, (74, 15.5), (21, 26.5), "", "white")
    write(axes, (84.5, 40.6), "3  certificate", ha="center", va="top", fontsize=9.5)
    write(
        axes,
        (84.5, 37.7),
        "codes within the proven\nerror of the best score:",
        ha="center",
        va="top",
        fontsize=8,
    )
    box(axes, (75.2, 28.5), (18.6, 4.4), "one: it is the nearest", WINNER, fontsize=8)
    box(
        axes,
        (75.2, 22.6),
        (18.6, 5.2),
        "two: compare both by\nfloat32 differences",
        "#fff59d",
        fontsize=8,
    )
    box(
        axes,
        (75.2, 16.7),
        (18.6, 5.2),
        "more, or still too close:\nfloat32, float64, all codes",
        DOUBT,
        fontsize=8,
    )
    arrow(axes, (84.5, 42), (84.5, 46))
    path(axes, [(84.5, 15.5), (84.5, 10), (20, 10)], DATA)
    write(axes, (49, 11), "one code per frame and codebook", fontsize=8.5, ha="center", va="bottom")

    # Words below.
    write(
        axes,
        (31, 22.2),
        "Never in device memory: projected frames,\nresiduals, scores, any N x K matrix.",
        fontsize=8.5,
        va="top",
    )
    write(
        axes,
        (31, 6.2),
        "Orange arrows: device memory. Each frame is read once and each code written once;\n"
        "weights and codebooks are read by every program, mostly from the cache.",
        fontsize=8.5,
        va="center",
        color=GREY,
    )
    return figure


def mrf() -> Figure:
    """The two ways to run the residual blocks of an upsampling level."""
    figure, axes = canvas(100, 88)
    write(
        axes,
        (2, 85.2),
        "MRF: the residual blocks of one upsampling level, two ways",
        fontsize=13,
        fontweight="bold",
        va="center",
    )

    area(
        axes,
        (2, 44.5),
        (96, 38),
        "by step: one launch for each convolution step; the blocks are a grid axis",
        CHIP,
    )
    rows = (("kernel 3", 68.5), ("kernel 5", 61), ("kernel 7", 53.5))
    box(axes, (4.5, 53.5), (10, 21), "input\n(B, T, C)\nin device\nmemory", DATA)
    for name, y in rows:
        write(axes, (22.5, y + 3), name, ha="center", va="center")
        for step, x in enumerate((28, 45, 62)):
            box(axes, (x, y), (12, 6), f"block's\nstep {step + 1}", WORK, fontsize=8)
        path(axes, [(14.5, y + 3), (18.5, y + 3)], DATA)
        arrow(axes, (26.5, y + 3), (28, y + 3), DATA)
        arrow(axes, (40, y + 3), (45, y + 3), DATA)
        arrow(axes, (57, y + 3), (62, y + 3), DATA)
        path(axes, [(74, y + 3), (79, y + 3)], DATA)
    for x, name in ((26.8, "launch 1"), (43.8, "launch 2"), (60.8, "launch 3")):
        frame = FancyBboxPatch(
            (x, 52), 14.4, 24, boxstyle="round,pad=0,rounding_size=0.8", fc="none", ec=INK, lw=1.6
        )
        axes.add_patch(frame)
        write(axes, (x + 7.2, 76.5), name, ha="center", va="bottom", fontsize=8.5)
    write(axes, (87.2, 76.5), "launch 4", ha="center", va="bottom", fontsize=8.5)
    box(
        axes,
        (79, 53.5),
        (16.5, 21),
        "the last:\neach block's last\nstep, summed in\none accumulator,\nmean written once",
        WINNER,
        fontsize=8.5,
    )
    write(
        axes,
        (4.5, 48.2),
        "A launch applies leaky_relu on the way in, and bias, residual and leaky_relu on the way "
        "out.\n"
        "Between launches the blocks' tensors pass through device memory (orange arrows).",
        fontsize=8.5,
        va="center",
    )

    area(axes, (2, 2), (96, 40), "by strip: all steps of all blocks in one launch", CHIP)
    # Input rows with a strip and its halo.
    write(axes, (4.5, 35.6), "input rows in device memory", fontsize=8.5, va="center")
    strip(axes, (4.5, 30.8), (90, 3.4), "d" * 7 + "h" * 3 + "w" * 10 + "h" * 3 + "d" * 7)
    write(axes, (30, 29.6), "halo", ha="center", va="top", fontsize=8)
    write(axes, (49.5, 29.6), "strip of one program", ha="center", va="top", fontsize=8)
    write(axes, (69, 29.6), "halo", ha="center", va="top", fontsize=8)
    # Shrinking ranges.
    for i, (label, cells) in enumerate(
        (
            ("step 1 writes", 14),
            ("step 2 writes", 12),
            ("last step writes", 10),
        )
    ):
        width, y = cells * 3.0, 22.5 - 5 * i
        x = 49.5 - width / 2
        strip(
            axes,
            (x, y),
            (width, 3),
            "h" * ((cells - 10) // 2) + ("g" if i == 2 else "w") * 10 + "h" * ((cells - 10) // 2),
        )
        write(axes, (26, y + 1.5), label, ha="right", va="center", fontsize=8.5)
        if i:
            for side in (-1, 1):
                edge = 49.5 + side * 15
                arrow(axes, (edge - side * 3, y + 5), (edge - side * 3, y + 3))
    box(
        axes,
        (74, 12.5),
        (21.5, 13),
        "what steps leave lies in\nscratch of the program's\nown, at most 30 MB in all,\n"
        "meant to stay in cache",
        "white",
        fontsize=8,
    )
    write(
        axes,
        (4.5, 6.6),
        "The halo is what the convolutions reach beyond the strip; each step needs less of it.\n"
        "Device memory sees the level's input once, its output once, and the weights.\n"
        "A program goes from strip to strip.",
        fontsize=8.5,
        va="center",
    )
    return figure


PICTURES = {"rvq-encode": rvq_encode, "mrf": mrf}


def main(folder: Path = HERE) -> None:
    """Write every picture into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    # Text as outlines: the same picture wherever it is shown.
    settings = {"svg.hashsalt": "muomni_fast", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(settings):
        for name, draw in PICTURES.items():
            figure = draw()
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
            figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
