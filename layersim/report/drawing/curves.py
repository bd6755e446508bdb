"""Curves over the layers, one a run or a measure, drawn into axes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from layersim.report.drawing.canvas import COLORS, GRID, INK, LABEL_SIZE, MARKERS, layer_ticks
from layersim.report.quantity import RATIO, Quantity

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


def draw_curves(axes: Axes, curves: Mapping[str, Quantity], places: Sequence[float] | None = None) -> dict[str, Line2D]:
    """One line a name, of a value a layer or at each of these places; and the axes to fit, in logarithms where ratios
    count; or "not recorded" in them."""
    layers = max((len(curve.values) for curve in curves.values()), default=0)
    points = {name: (places or range(1, len(curve.values) + 1), curve.values) for name, curve in curves.items()}
    lines = draw_lines(axes, points, size=5 if layers <= 16 else 3.5)
    if not layers:
        say_not_recorded(axes)
        return lines
    values = [value for curve in curves.values() for value in curve.values]
    one = next(curve for curve in curves.values() if curve.values)
    scale_layers(axes, layers if places is None else math.ceil(max(places)))
    if one.unit == RATIO:
        scale_ratios(axes)
    elif one.range[1] == 1:
        axes.set_ylim(*share_limits(values))
    else:
        low, high = one.range
        finite = [value for value in values if math.isfinite(value)]
        top = 1.05 * max(finite, default=1.0) or 1.0
        axes.set_ylim(
            min([0.0, *finite]) if low is None else low, (1.05 * top if top > 0 else 1.0) if high is None else high
        )
    return lines


def draw_bands(axes: Axes, curves: Mapping[str, Quantity], lines: Mapping[str, Line2D]) -> None:
    """The intervals of the curves that have one, in the colours of their lines."""
    for name, curve in curves.items():
        if curve.interval is not None:
            layers, ends = range(1, len(curve.values) + 1), (curve.interval["low"], curve.interval["high"])
            axes.fill_between(layers, *ends, color=lines[name].get_color(), alpha=0.22, linewidth=0)


def axis_label(curves: Mapping[str, Quantity], otherwise: str) -> str:
    """What stands along the axis of values: their unit, or, where it says nothing, this."""
    unit = next((curve.unit for curve in curves.values() if curve.unit), "")
    return otherwise if unit in ("", RATIO, "share") else unit


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


def scale_ratios(axes: Axes) -> None:
    """Upwards in logarithms, fitted to what is drawn: perplexities of layers that were not trained to be read are worse
    by decades."""
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
