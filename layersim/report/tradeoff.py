"""Accuracy against what it costs, in layers and in time: figures, and a table of runs side by side."""

import math
from collections.abc import Mapping
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from layersim.errors import UserError
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
from layersim.report.drawing.legend import draw_legend, legend_height
from layersim.report.exits import ExitReport
from layersim.report.terminal import SideBySide, gathered

_LEFT, _BELOW, _WIDTH, _HEIGHT, _GAP = 0.65, 0.55, 4.3, 3.2, 0.75  # inches: an axes' size, and what stands around it
_NOTE = "Bands: 95 % bootstrap over samples, at each threshold. Large marks: the threshold that was chosen."


def tradeoff_figure(reports: Mapping[str, ExitReport]) -> Figure:
    """Accuracy against mean exit layer, with 95 % bands, and, where a run was timed, against measured time.

    Large marks are the thresholds that were chosen. The accuracy's axis holds all curves and bands, to a tenth.

    Args:
        reports: by the run's name; the number of layers may differ.

    Raises:
        UserError: there is no run.
    """
    if not reports:
        raise UserError("Expected one run with exits or more to draw the trade-off of, but got none.")
    timed = any(report.speed for report in reports.values())
    width = _WIDTH + (_GAP + _WIDTH if timed else 0)
    note, legend = 0.25, legend_height(reports, width)
    bottom = note + legend + _BELOW
    figure = sheet(_LEFT + width + 0.15, bottom + _HEIGHT + 0.45)
    looks = zip(cycle(COLORS), cycle(MARKERS), strict=False)
    lines = {
        name: Line2D([], [], color=color, marker=marker, markersize=5, linewidth=1.6)
        for name, (color, marker) in zip(reports, looks, strict=False)
    }
    panels = {"Accuracy by mean exit layer": _draw_layers, "Accuracy by measured time": _draw_times}
    for column, (title, draw) in enumerate(panels.items() if timed else [*panels.items()][:1]):
        axes = place(figure, _LEFT + column * (_WIDTH + _GAP), bottom, _WIDTH, _HEIGHT)
        write_title(axes, title)
        draw(axes, reports, lines)
        axes.set_ylim(*_accuracies(reports))
        axes.grid(axis="y", color=GRID, linewidth=0.8)
    draw_legend(figure, lines, _LEFT, note + legend, width)
    across, up = figure.get_size_inches()
    figure.text(_LEFT / across, 0.1 / up, _NOTE if timed else _NOTE.replace(". ", ".\n"), fontsize=TICK_SIZE, color=INK)
    return figure


def tradeoff_table(reports: Mapping[str, ExitReport]) -> SideBySide:
    """Runs side by side: the threshold, where samples left, what that gained in layers and in time, and at what cost.

    Args:
        reports: by the run's name. A cell is empty where nothing was measured.
    """
    rows = gathered([exit_summary(report) for report in reports.values()])
    return SideBySide("exits", list(reports), rows, least=12)


def _draw_layers(axes: Axes, reports: Mapping[str, ExitReport], lines: Mapping[str, Line2D]) -> None:
    _scale_layers(axes, max(report.layers for report in reports.values()))
    for name, report in reports.items():
        curve, color = report.curve, lines[name].get_color()
        low, high = zip(*curve["accuracy_interval"], strict=True)
        axes.fill_between(curve["mean_exit_layer"], low, high, color=color, alpha=0.18, linewidth=0)
        axes.plot(curve["mean_exit_layer"], curve["accuracy"], color=color, linewidth=1.6, clip_on=False)
    for name, report in reports.items():  # above all curves
        _mark(axes, report.mean_exit_layer, report.accuracy, lines[name])


def _draw_times(axes: Axes, reports: Mapping[str, ExitReport], lines: Mapping[str, Line2D]) -> None:
    write_labels(axes, "time ÷ time of the full model", "")
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    for name, report in reports.items():
        points = sorted(report.speed, key=lambda point: float(point["mean_exit_layer"]))
        times = [1 / point["wall_gain"] for point in points]
        accuracies = [point["accuracy"] for point in points]
        look: Any = {"color": lines[name].get_color(), "marker": lines[name].get_marker()}
        axes.plot(times, accuracies, **look, markersize=5, linewidth=1.6, clip_on=False)
    for name, report in reports.items():
        if report.wall_gain is not None:
            _mark(axes, 1 / report.wall_gain, report.accuracy, lines[name])
    slowest = max(1 / point["wall_gain"] for report in reports.values() for point in report.speed)
    axes.set_xlim(0, max(1.05, 1.05 * slowest))


def _mark(axes: Axes, x: float, accuracy: float, line: Line2D) -> None:
    """The threshold that was chosen."""
    look: Any = {"color": line.get_color(), "marker": line.get_marker()}
    axes.plot([x], [accuracy], **look, markersize=10, markeredgecolor="white", clip_on=False, zorder=3)


def _scale_layers(axes: Axes, layers: int) -> None:
    write_labels(axes, "mean exit layer", "accuracy")
    axes.set_xlim(0.9, layers + 0.1)
    axes.set_xticks(layer_ticks(layers))
    axes.grid(axis="y", color=GRID, linewidth=0.8)


def _accuracies(reports: Mapping[str, ExitReport]) -> tuple[float, float]:
    """The tenths between which all bands and points lie."""
    shown = [each for report in reports.values() for pair in report.curve["accuracy_interval"] for each in pair]
    shown += [
        point["accuracy"] for report in reports.values() for point in (*report.speed, {"accuracy": report.accuracy})
    ]
    low = math.floor(10 * min(shown)) / 10
    return low, max(math.ceil(10 * max(shown)) / 10, low + 0.1)


def exit_summary(report: ExitReport) -> dict[str, str]:
    """What a table or a page says of a run's exits, by name."""
    promise, parameters = report.promise, report.parameters
    separate = parameters["model"] == parameters["separate_heads"]
    summary = {
        "policy": report.policy,
        "threshold": "none" if report.threshold is None else f"{report.threshold:.6g}",
        "chosen by": "budget" if promise is None else f"{promise['risk']} ≤ {promise['target']:g}",
        "samples": f"{report.samples:,}",
        "mean exit layer": f"{report.mean_exit_layer:.2f} of {report.layers}",
        "layer gain": f"{report.layer_gain:.2f}",
        "measured gain": "" if report.wall_gain is None else f"{report.wall_gain:.2f}",
        "timed on": "" if report.batch_size is None else f"{report.device}, batch {report.batch_size}",
        "accuracy at exits": f"{report.accuracy:.3f}",
        "full accuracy": f"{report.full_accuracy:.3f}",
        "parameters": f"{parameters['model']:,}",
        "saved by one head": "0.0%" if separate else f"{parameters['share_saved']:.1%}",
    }
    return {row: cell for row, cell in summary.items() if cell}
