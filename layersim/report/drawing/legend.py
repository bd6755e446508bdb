"""The legend of curves: runs by name, in as many columns as there is room for."""

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from layersim.report.drawing.canvas import INK, LABEL_SIZE, TICK_SIZE, shorten

_CHARACTER = 0.6 * LABEL_SIZE / 72  # inches that a character of a legend takes, wide names included


def _legend_shape(names: Sequence[str], width: float) -> tuple[int, int]:
    """Rows and columns of a legend, as many columns as `width` inches hold of the longest name."""
    longest = max(map(len, names), default=0)
    columns = max(1, min(len(names), int(width / (_CHARACTER * longest + 0.6))))
    return -(-len(names) // columns), columns


def legend_height(names: Iterable[str], width: float) -> float:
    """Inches."""
    return 0.1 + 0.22 * _legend_shape(list(names), width)[0]


def draw_legend(figure: Figure, lines: Mapping[str, Line2D], left: float, top: float, width: float) -> None:
    """The runs' names beside their lines; its top left corner and width in inches."""
    across, up = figure.get_size_inches()
    legend = figure.legend(
        list(lines.values()),
        [f"run {number}" for number in range(len(lines))],
        loc="upper left",
        bbox_to_anchor=(left / across, top / up),
        borderpad=0,
        borderaxespad=0,
        ncols=_legend_shape(list(lines), width)[1],
        frameon=False,
        fontsize=LABEL_SIZE,
        labelcolor=INK,
    )
    for text, name in zip(legend.get_texts(), lines, strict=True):  # set here, for a legend passes over names with a _
        text.set_parse_math(False)
        text.set_text(shorten(name, int((width - 0.6) / _CHARACTER)))


def draw_key(axes: Axes, lines: Mapping[str, Line2D], *, title: str = "", columns: int = 4) -> None:
    """The lines' names below the axes they are in."""
    axes.legend(
        list(lines.values()),
        list(lines),
        title=title,
        title_fontsize=TICK_SIZE,
        ncols=columns,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17),
        frameon=False,
        fontsize=TICK_SIZE,
        labelcolor=INK,
        handlelength=1.4,
        columnspacing=1,
        borderpad=0,
    )
