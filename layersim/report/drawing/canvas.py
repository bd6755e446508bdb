"""The sheet that all figures are drawn on: one look, and how a sheet becomes a PNG file.

Drawn with matplotlib's own objects and never with pyplot, so that no setting or figure is left behind in the process:
what a user draws beside a training run, and what several threads draw at once, stays as it is.
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from layersim.writing import written_whole

DPI = 120
INK = "#333333"
GRID = "#e3e3e3"

TITLE_SIZE, LABEL_SIZE, TICK_SIZE = 11.0, 9.5, 8.5

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers tell apart, less its yellow, which is lost on white."""
MARKERS = "osD^vPX*"
"""One more than there are colours: a combination comes back after 56 runs only."""


def sheet(width: float, height: float) -> Figure:
    """An empty figure, `width` × `height` inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in inches: a known layout needs no search, which takes matplotlib long."""
    across, up = figure.get_size_inches()
    axes = figure.add_axes((left / across, bottom / up, width / across, height / up))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(labelsize=TICK_SIZE, colors=INK, length=3)
    axes.set_axisbelow(True)
    return axes


def width_in_points(axes: Axes) -> float:
    """The unit of font sizes, 72 an inch."""
    return float(axes.bbox.width) * 72 / DPI


def write_title(axes: Axes, title: str) -> None:
    """The title above the axes, cut in its middle where it is longer than the axes are wide."""
    shown = shorten(title, int(width_in_points(axes) / (0.58 * TITLE_SIZE)))
    axes.set_title(shown, fontsize=TITLE_SIZE, color=INK, loc="left", y=1, pad=8, parse_math=False)


def write_labels(axes: Axes, x: str, y: str) -> None:
    """What the two axes stand for."""
    axes.set_xlabel(x, fontsize=LABEL_SIZE, color=INK, parse_math=False)
    axes.set_ylabel(y, fontsize=LABEL_SIZE, color=INK, parse_math=False)


def layer_ticks(layers: int) -> list[int]:
    """The layers, from 1, that get a tick: all up to 16, else the first, the last, and every 4th, 8th, 16th …"""
    if layers <= 16:
        return list(range(1, layers + 1))
    step = 4
    while layers > 8 * step:
        step *= 2
    return sorted({1, layers, *range(step, layers - step // 2, step)})


def shorten(text: str, length: int) -> str:
    """The text on one line of at most `length` characters; its two ends stay, for runs often differ at the end."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def save_figure(figure: Figure, path: Path) -> None:
    """Writes the figure as PNG. Whoever looks at `path` meanwhile sees the old picture or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        figure.savefig(part, format="png", dpi=DPI, pil_kwargs={"compress_level": 1})  # a third larger, a sixth faster
