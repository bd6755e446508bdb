"""Curves over the layers, one a run or a measure, drawn into axes."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from layersim.report.drawing.canvas import COLORS, GRID, INK, LABEL_SIZE, MARKERS, layer_ticks

Points = tuple[Sequence[float], Sequence[float]]
"""Layers, counted from 1, and a value at each."""


def draw_lines(axes: Axes, curves: Mapping[str, Points], size: float = 5) -> dict[str, Line2D]:
    """A line with markers of this size for each name, in a look that no other has; an empty curve is drawn nowhere."""
    looks = zip(cycle(COLORS), cycle(MARKERS), strict=False)
    lines = {}
    for (name, points), (color, marker) in zip(curves.items(), looks, strict=False):
        (lines[name],) = axes.plot(
            *points, color=color, marker=marker, markersize=size, linewidth=1.6, clip_on=False, zorder=3
        )
    return lines


def draw_curves(axes: Axes, curves: Mapping[str, Sequence[float]]) -> dict[str, Line2D]:
    """One line a name, of values of every layer, such as shares; and the axes to fit, or "not recorded" in them."""
    layers = max(map(len, curves.values()), default=0)
    points = {name: (range(1, len(values) + 1), values) for name, values in curves.items()}
    lines = draw_lines(axes, points, size=5 if layers <= 16 else 3.5)
    if layers:
        present = [value for values in curves.values() for value in values if not math.isnan(value)]
        scale_axes(axes, layers, lowest=min(present, default=0.0))
    else:
        say_not_recorded(axes)
    return lines


def scale_axes(axes: Axes, layers: int, lowest: float = 0.0) -> None:
    """Every layer across; 0 … 1 up, with room below where values are negative."""
    axes.set_ylim(0.2 * math.floor(min(lowest, 0.0) / 0.2), 1)
    scale_layers(axes, layers)


def scale_layers(axes: Axes, layers: int) -> None:
    """Every layer across."""
    axes.set_xlim(0.5, layers + 0.5)
    axes.set_xticks(layer_ticks(layers))
    axes.grid(axis="y", color=GRID, linewidth=0.8)


def say_not_recorded(axes: Axes) -> None:
    """Empty axes that say so."""
    axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
    axes.spines[:].set_visible(False)
    axes.text(
        0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color=INK, fontsize=LABEL_SIZE
    )
