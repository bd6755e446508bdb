"""Figures of the path that features take through the layers, from what `LayerRecord.progression` holds.

Layers count from 1; what belongs to a step stands between its two layers. Letters: L layers, C classes.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layersim.report.drawing.canvas import (
    COLORS,
    GRID,
    INK,
    MARKERS,
    TICK_SIZE,
    layer_ticks,
    place,
    sheet,
    write_labels,
    write_title,
)

_LEFT, _WIDTH, _HEIGHT, _ACROSS, _UP = 0.65, 3.5, 2.4, 0.75, 1.25  # inches: a panel's size, and what lies between two
_COLLAPSE = {
    "nc1": "NC1",
    "norm_spread": "NC2, norms",
    "simplex_gap": "NC2, angles",
    "self_duality": "NC3",
}


def progression_figure(progression: Mapping[str, Any]) -> Figure:
    """What rises with the layer and for how many samples, how straight the path is, and neural collapse, in panels.

    Args:
        progression: as in a `LayerRecord`; without targets it has no panel of the probability, without classes none of
            neural collapse.
    """
    panels = [_draw_cosine, _draw_probability, _draw_angles, _draw_distances, _draw_ratios, _draw_collapse]
    needed = {_draw_probability: "target_probability", _draw_collapse: "neural_collapse"}
    shown = [draw for draw in panels if needed.get(draw, "cosine") in progression]
    rows = -(-len(shown) // 3)
    figure = sheet(_LEFT + 3 * _WIDTH + 2 * _ACROSS + 0.2, rows * (_HEIGHT + _UP))
    for number, draw in enumerate(shown):
        row, column = divmod(number, 3)
        bottom = (rows - 1 - row) * (_HEIGHT + _UP) + 0.8
        axes = place(figure, _LEFT + column * (_WIDTH + _ACROSS), bottom, _WIDTH, _HEIGHT)
        layers = len(progression["cosine"])
        axes.set_xlim(0.5, layers + 0.5)
        axes.set_xticks(layer_ticks(layers))
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        draw(axes, progression)
    return figure


def class_paths_figure(classes: Sequence[int], points: Sequence[Sequence[Sequence[float]]], explained: float) -> Figure:
    """The way of each class's mean from layer 1 to layer L, where the class's number stands.

    Args:
        classes: C numbers.
        points: C × L × 2 coordinates in the plane of the first two principal components.
        explained: share of the means' variance that this plane shows, 0 … 1.
    """
    side = 5.6
    figure = sheet(side + 0.9, side + 1.05)
    axes = place(figure, 0.7, 0.6, side, side)
    write_title(axes, "Class means, from the first layer to the last")
    share = "" if math.isnan(explained) else f" ({explained:.0%} of the variance in this plane)"
    write_labels(axes, f"first principal component{share}", "second principal component")
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.08)
    axes.grid(color=GRID, linewidth=0.8)
    looks = zip(cycle(COLORS), cycle(MARKERS), strict=False)
    for number, way, (color, marker) in zip(classes, points, looks, strict=False):
        axes.plot(*zip(*way, strict=True), color=color, marker=marker, markersize=4, linewidth=1.3)
        if all(map(math.isfinite, way[-1])):
            last = (way[-1][0], way[-1][1])
            label = {"boxstyle": "round,pad=0.25", "facecolor": color, "edgecolor": "white"}
            axes.annotate(str(number), last, color="white", fontsize=TICK_SIZE, ha="center", va="center", bbox=label)
    return figure


def _draw_cosine(axes: Axes, progression: Mapping[str, Any]) -> None:
    _draw_rise(axes, progression, "cosine", "Cosine to the last layer")


def _draw_probability(axes: Axes, progression: Mapping[str, Any]) -> None:
    _draw_rise(axes, progression, "target_probability", "Probability of the true class")


def _draw_rise(axes: Axes, progression: Mapping[str, Any], name: str, title: str) -> None:
    """The mean by layer, and at each step the share of samples for which it rises."""
    means, shares = progression[name], progression[f"{name}_rises_by_step"]
    axes.bar(_steps(shares), shares, width=0.6, color=COLORS[5], alpha=0.45)
    axes.plot(_layers(means), means, color=COLORS[0], marker="o", markersize=4, clip_on=False)
    axes.set_ylim(0.2 * math.floor(min([0.0, *filter(math.isfinite, means)]) / 0.2), 1)
    write_title(axes, title)
    every = progression[f"{name}_rises"]
    every = "NaN" if math.isnan(every) else f"{every:.0%}"
    write_labels(axes, f"layer\nline: mean; bars: share that rises ({every} always)", "")


def _draw_angles(axes: Axes, progression: Mapping[str, Any]) -> None:
    angles = progression["angle"]
    axes.plot(range(2, len(angles) + 2), angles, color=COLORS[0], marker="o", markersize=4, clip_on=False)
    axes.set_ylim(0, 180)
    axes.set_yticks(range(0, 181, 45))
    write_title(axes, "Angle between steps")
    write_labels(axes, f"layer\npath ÷ chord {progression['path_over_chord']:.2f}", "degrees")


def _draw_distances(axes: Axes, progression: Mapping[str, Any]) -> None:
    distances = progression["distance_to_segment"]
    axes.plot(_layers(distances), distances, color=COLORS[0], marker="o", markersize=4, clip_on=False)
    axes.set_ylim(0, max([1.0, *(1.05 * distance for distance in distances if math.isfinite(distance))]))
    write_title(axes, "Distance to the segment ÷ chord")
    write_labels(axes, "layer", "")


def _draw_ratios(axes: Axes, progression: Mapping[str, Any]) -> None:
    ratios = progression["skip_over_residual"]
    axes.plot(_steps(ratios), ratios, color=COLORS[0], marker="o", markersize=4, clip_on=False)
    _log_scale(axes, ratios, least=-1)
    axes.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    write_title(axes, "Norm of skip ÷ residual")
    write_labels(axes, "layer", "")


def _draw_collapse(axes: Axes, progression: Mapping[str, Any]) -> None:
    collapse = progression["neural_collapse"]
    shown = {label: collapse[key] for key, label in _COLLAPSE.items() if key in collapse}
    for (label, values), color, marker in zip(shown.items(), COLORS, MARKERS, strict=False):
        axes.plot(_layers(values), values, color=color, marker=marker, markersize=4, label=label, clip_on=False)
    _log_scale(axes, [value for values in shown.values() for value in values], least=-2)
    write_title(axes, "Neural collapse")
    write_labels(axes, f"layer ({len(collapse['classes'])} classes)", "")
    below = (0.5, -0.18)
    axes.legend(
        ncols=4,
        loc="upper center",
        bbox_to_anchor=below,
        frameon=False,
        fontsize=TICK_SIZE,
        labelcolor=INK,
        handlelength=1.4,
        columnspacing=1,
    )


def _layers(values: Sequence[float]) -> range:
    return range(1, len(values) + 1)


def _steps(values: Sequence[float]) -> list[float]:
    return [layer + 0.5 for layer in _layers(values)]


def _log_scale(axes: Axes, values: Sequence[float], *, least: int) -> None:
    """From 10 to the power `least` to ten, or the decades that the values need."""
    exponents = [math.log10(value) for value in values if 0 < value < math.inf]
    axes.set_yscale("log")
    axes.set_ylim(10.0 ** min([least, *map(math.floor, exponents)]), 10.0 ** max([1, *map(math.ceil, exponents)]))
