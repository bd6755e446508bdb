"""Curves over the layers, one a run or a measure, drawn into axes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

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


def draw_curves(axes: Axes, curves: Mapping[str, Sequence[float]], *, perplexities: bool = False) -> dict[str, Line2D]:
    """One line a name, of values of every layer: shares and similarities, or perplexities; and the axes to fit, or "not
    recorded" in them."""
    layers = max(map(len, curves.values()), default=0)
    points = {name: (range(1, len(values) + 1), values) for name, values in curves.items()}
    lines = draw_lines(axes, points, size=5 if layers <= 16 else 3.5)
    if layers:
        if perplexities:
            scale_perplexities(axes)
            scale_layers(axes, layers)
        else:
            scale_axes(axes, layers, [value for values in curves.values() for value in values])
    else:
        say_not_recorded(axes)
    return lines


def scale_axes(axes: Axes, layers: int, values: Iterable[float] = (1.0,)) -> None:
    """Every layer across; upwards what `share_limits` gives."""
    axes.set_ylim(*share_limits(values))
    scale_layers(axes, layers)


def share_limits(values: Iterable[float]) -> tuple[float, float]:
    """The ends of an axis of shares: 0 … 1, or where all are small to the next of 0.5, 0.2, 0.1, 0.05 …; with room
    below where values are negative.

    In steps so coarse that the pictures of most epochs and runs can still be laid side by side.
    """
    present = [value for value in values if not math.isnan(value)]
    low, top = 0.2 * math.floor(min([*present, 0.0]) / 0.2), max(present, default=1.0)
    power = 10.0 ** math.floor(math.log10(top)) if top > 0 else 1.0
    return low, min(1.0, next(factor * power for factor in (1, 2, 5, 10) if round(top - factor * power, 12) <= 0))


def scale_perplexities(axes: Axes) -> None:
    """Upwards in logarithms, fitted to what is drawn: layers that were not trained to be read are worse by decades."""
    drawn = [float(value) for line in axes.lines for value in np.asarray(line.get_ydata()) if 0 < value < math.inf]
    decades = math.log10(max(drawn) / min(drawn)) if drawn else 0.0
    axes.set_yscale("log")
    close = decades < 0.5  # 1, 2 and 5 may all lie beyond
    axes.yaxis.set_major_locator(MaxNLocator(6) if close else LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    axes.yaxis.set_major_formatter(lambda tick, _: f"{tick:g}" if tick < 1e4 else f"{tick:.0e}".replace("e+0", "e"))
    axes.yaxis.set_minor_locator(NullLocator())


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
