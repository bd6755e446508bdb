"""Figures of the path that features take through the layers, from what `LayerRecord.progression` holds.

Layers count from 1; what belongs to a step stands between its two layers. Letters: L layers, C classes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from layersim.report.drawing.canvas import COLORS, GRID, INK, TICK_SIZE, place, sheet, write_labels, write_title
from layersim.report.drawing.curves import draw_lines, scale_layers, share_limits
from layersim.report.drawing.legend import draw_key

_LEFT, _WIDTH, _HEIGHT, _ACROSS, _UP = 0.65, 3.5, 2.4, 0.75, 1.25  # inches: a panel's size, and what lies between two
_COLLAPSE = {"nc1": "NC1", "norm_spread": "NC2, norms", "simplex_gap": "NC2, angles", "self_duality": "NC3"}


def progression_figure(progression: Mapping[str, Any]) -> Figure:
    """What rises with the layer and for how many samples, how straight the path is, and neural collapse, in panels.

    Args:
        progression: as in a `LayerRecord`; without targets it has no panel of the probability, without classes none of
            neural collapse.
    """
    panels = (
        ("cosine", "Cosine to the last layer", _draw_rise),
        ("target_probability", "Probability of the true class", _draw_rise),
        ("angle", "Angle between steps", _draw_angles),
        ("distance_to_segment", "Distance to the segment ÷ chord", _draw_distances),
        ("skip_over_residual", "Norm of skip ÷ residual", _draw_ratios),
        ("neural_collapse", "Neural collapse", _draw_collapse),
    )
    shown = [panel for panel in panels if panel[0] in progression]
    rows = -(-len(shown) // 3)
    figure = sheet(_LEFT + 3 * _WIDTH + 2 * _ACROSS + 0.2, rows * (_HEIGHT + _UP))
    for number, (key, title, draw) in enumerate(shown):
        row, column = divmod(number, 3)
        bottom = (rows - 1 - row) * (_HEIGHT + _UP) + 0.8
        axes = place(figure, _LEFT + column * (_WIDTH + _ACROSS), bottom, _WIDTH, _HEIGHT)
        scale_layers(axes, len(progression["cosine"]))
        write_title(axes, title)
        write_labels(axes, f"layer{draw(axes, progression, key)}", "")
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
    ways = {
        str(number): ([x for x, _ in way], [y for _, y in way]) for number, way in zip(classes, points, strict=True)
    }
    for number, line in draw_lines(axes, ways, size=4).items():
        last = ways[number][0][-1], ways[number][1][-1]
        if all(map(math.isfinite, last)):
            label = {"boxstyle": "round,pad=0.25", "facecolor": line.get_color(), "edgecolor": "white"}
            axes.annotate(number, last, color="white", fontsize=TICK_SIZE, ha="center", va="center", bbox=label)
    return figure


def _draw_rise(axes: Axes, progression: Mapping[str, Any], key: str) -> str:
    """The mean by layer, and at each step the share of samples for which it rises; gives what to say below."""
    shares, every = progression[f"{key}_rises_by_step"], progression[f"{key}_rises"]
    axes.bar([step + 1.5 for step in range(len(shares))], shares, width=0.6, color=COLORS[5], alpha=0.45)
    _draw(axes, {"": progression[key]})
    axes.set_ylim(share_limits([*progression[key], 1.0])[0], 1)
    return f"\nline: mean; bars: share that rises ({'NaN' if math.isnan(every) else f'{every:.0%}'} always)"


def _draw_angles(axes: Axes, progression: Mapping[str, Any], key: str) -> str:
    _draw(axes, {"": progression[key]}, first=2)
    axes.set_ylim(0, 180)
    axes.set_yticks(range(0, 181, 45))
    return f"\ndegrees; path ÷ chord {progression['path_over_chord']:.2f}"


def _draw_distances(axes: Axes, progression: Mapping[str, Any], key: str) -> str:
    distances = progression[key]
    _draw(axes, {"": distances})
    axes.set_ylim(0, max([1.0, *(1.05 * distance for distance in distances if math.isfinite(distance))]))
    return ""


def _draw_ratios(axes: Axes, progression: Mapping[str, Any], key: str) -> str:
    _draw(axes, {"": progression[key]}, first=1.5)
    _log_scale(axes, progression[key], least=-1)
    axes.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    return ""


def _draw_collapse(axes: Axes, progression: Mapping[str, Any], key: str) -> str:
    collapse = progression[key]
    shown = {label: collapse[key] for key, label in _COLLAPSE.items() if key in collapse}
    draw_key(axes, _draw(axes, shown))
    _log_scale(axes, [value for values in shown.values() for value in values], least=-2)
    return f" ({len(collapse['classes'])} classes)"


def _draw(axes: Axes, curves: Mapping[str, Sequence[float]], first: float = 1) -> dict[str, Line2D]:
    """Lines whose numbers stand at the layers `first`, `first` + 1 …"""
    points = {name: ([first + step for step in range(len(values))], values) for name, values in curves.items()}
    return draw_lines(axes, points, size=4)


def _log_scale(axes: Axes, values: Sequence[float], *, least: int) -> None:
    """From 10 to the power `least` to ten, or the decades that the values need."""
    exponents = [math.log10(value) for value in values if 0 < value < math.inf]
    axes.set_yscale("log")
    axes.set_ylim(10.0 ** min([least, *map(math.floor, exponents)]), 10.0 ** max([1, *map(math.ceil, exponents)]))
