"""Figures of what was measured: pure functions from quantities to a matplotlib figure.

What is drawn follows from a quantity's axes, unit and range alone. Layers count from 1. Scales of shares and
similarities are fixed, or in coarse steps, so that pictures of different epochs and runs can be laid side by side.
Letters: L layers, M layers of the other model (L again within one model).
"""

from collections.abc import Callable, Mapping
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from layersim.errors import UserError
from layersim.report.drawing.canvas import (
    COLORS,
    GRID,
    INK,
    LABEL_SIZE,
    MARKERS,
    place,
    sheet,
    write_labels,
    write_title,
)
from layersim.report.drawing.curves import (
    axis_label,
    draw_bands,
    draw_curves,
    say_not_recorded,
    scale_axes,
)
from layersim.report.drawing.heatmap import Range, draw_color_bar, draw_matrix, scale_of
from layersim.report.drawing.legend import draw_legend, legend_height
from layersim.report.quantity import LAYER, Quantity
from layersim.report.records import LayerRecord, shared_name

_LEFT, _BELOW, _WIDTH, _HEIGHT = 0.65, 0.55, 5.6, 3.2  # inches: around and inside of a single panel


def figures_of(
    quantities: Mapping[str, Quantity], unit: str = "samples", *, span: Range = "fixed"
) -> dict[str, Callable[[], Figure]]:
    """How to draw each quantity that has an axis, by the figure's name: `layer_accuracy` of a curve whose values are
    better high or low, else the quantity's own.

    Args:
        quantities: by name.
        unit: what a sample is.
        span: of heat maps' colours.
    """
    found: dict[str, Callable[[], Figure]] = {}
    for name, quantity in quantities.items():
        label = quantity.name_of(name)
        if quantity.is_curve and quantity.unit == unit:
            found[name] = lambda q=quantity, told=label: counts_figure(q, told, unit)  # type: ignore[misc]
        elif quantity.is_curve:
            key = name if quantity.better is None else f"layer_{name}"
            found[key] = lambda q=quantity, told=label: curves_figure({told: q}, told)  # type: ignore[misc]
        elif len(quantity.axes) == 2 and quantity.axes[1] == LAYER:
            found[name] = lambda q=quantity, told=label: heat_map(q, told, span=span)  # type: ignore[misc]
        elif len(quantity.axes) == 1:
            found[name] = lambda q=quantity, told=label: line_figure(q, told)  # type: ignore[misc]
        elif len(quantity.axes) == 3 and quantity.axes[1] == LAYER and np.shape(quantity.values)[2] == 2:
            found[name] = lambda q=quantity, told=label: ways_figure(q, told)  # type: ignore[misc]
    return found


def heat_map(quantity: Quantity, name: str, *, span: Range = "fixed") -> Figure:
    """Values of every pair of layers, or of layers (across) at each tick of another axis; the first at the bottom left.

    Args:
        quantity: of two axes, the second of layers.
        name: for people: stands above, cut in its middle where it is too long.
        span: of the colours, see `scale_of`.
    """
    rows, columns = np.shape(quantity.values)
    side = 4.6
    height = side if quantity.is_matrix else min(side, max(0.6, side * rows / columns))
    figure = sheet(side + 1.75, height + 1.05)
    axes = place(figure, 0.6, _BELOW, side, height)
    scale = scale_of(name, quantity, [quantity.values], span)
    write_title(axes, _title(name))
    write_labels(axes, "layer", quantity.axes[0])
    draw_matrix(axes, quantity.values, scale, up=quantity.ticks.get(quantity.axes[0], ()))
    draw_color_bar(place(figure, side + 0.8, _BELOW, 0.16, height), [quantity.values], scale)
    return figure


def curves_figure(quantities: Mapping[str, Quantity], title: str) -> Figure:
    """Curves by layer, one a name, each with the band of its interval.

    Args:
        quantities: curves of one kind, by the name that the legend gives them; L may differ.
        title: of what it is, stands above.
    """
    width = _WIDTH
    legend = legend_height(quantities, width) if len(quantities) > 1 else 0
    figure = sheet(width + 0.8, _HEIGHT + 1 + legend)
    axes = place(figure, _LEFT, _BELOW + legend, width, _HEIGHT)
    write_title(axes, f"{_title(title)} by layer")
    write_labels(axes, "layer", axis_label(quantities, title))
    lines = draw_curves(axes, quantities)
    draw_bands(axes, quantities, lines)
    if legend:
        draw_legend(figure, lines, _LEFT, legend, width)
    return figure


def panels_figure(quantities: Mapping[str, Quantity]) -> Figure:
    """Small panels, three a row, one for each quantity that has a single axis."""
    across, width, height, columns = 0.75, 3.5, 2.4, 3
    rows = -(-len(quantities) // columns)
    figure = sheet(_LEFT + columns * width + (columns - 1) * across + 0.2, rows * (height + 1.1))
    for number, (name, quantity) in enumerate(quantities.items()):
        row, column = divmod(number, columns)
        bottom = (rows - 1 - row) * (height + 1.1) + _BELOW + 0.05
        _draw_line(place(figure, _LEFT + column * (width + across), bottom, width, height), quantity, name)
    return figure


def counts_figure(quantity: Quantity, name: str, unit: str) -> Figure:
    """How samples are spread over the layers: the share at each layer, and the share up to it.

    Args:
        quantity: (L,) counts.
        name: for people.
        unit: what a sample is.

    Raises:
        UserError: no sample was counted.
    """
    total = sum(quantity.values)
    if total == 0:
        raise UserError(f"a histogram of {name} needs one sample or more, got none.")
    shares = np.asarray(quantity.values) / total
    layers = range(1, len(shares) + 1)
    figure = sheet(6.4, 4.5)
    axes = place(figure, 0.75, 0.85, 5.5, _HEIGHT)
    axes.bar(layers, shares, width=0.8, color=COLORS[0], label="at this layer")
    look = {"color": COLORS[1], "marker": "o", "markersize": 4, "label": "at this layer or before"}
    axes.plot(layers, shares.cumsum(), clip_on=False, **look)  # type: ignore[arg-type]
    scale_axes(axes, len(shares))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    write_title(axes, _title(name))
    write_labels(axes, "layer", f"share of {total:,} {unit}")
    below = (0.5, -0.15)
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=below, frameon=False, fontsize=LABEL_SIZE, labelcolor=INK)
    return figure


def line_figure(quantity: Quantity, name: str) -> Figure:
    """A curve along its one axis, or along what its ticks have in the axis's place."""
    figure = sheet(_LEFT + _WIDTH + 0.15, _BELOW + _HEIGHT + 0.45)
    _draw_line(place(figure, _LEFT, _BELOW, _WIDTH, _HEIGHT), quantity, name)
    return figure


def _draw_line(axes: Axes, quantity: Quantity, name: str) -> None:
    (axis,) = quantity.axes
    along = next((other for other in quantity.ticks if other != axis), axis)
    label = quantity.name_of(name)
    draw_curves(axes, {label: quantity}, quantity.ticks.get(along))
    write_title(axes, _title(label))
    write_labels(axes, along.replace("_", " "), axis_label({label: quantity}, ""))


def ways_figure(quantity: Quantity, name: str) -> Figure:
    """The way of each entry of the first axis through the layers in a plane, with its tick where it ends.

    Args:
        quantity: of three axes, the second of layers, the third of two coordinates.
        name: for people.
    """
    side = _WIDTH
    figure = sheet(side + 0.9, side + 1.05)
    axes = place(figure, 0.7, 0.6, side, side)
    write_title(axes, f"{_title(name)}, from the first layer to the last")
    told = ", ".join(f"{key} {value:.3g}" for key, value in quantity.options.items() if isinstance(value, float))
    write_labels(axes, f"first {quantity.axes[2]}{told and f' ({told})'}", f"second {quantity.axes[2]}")
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.08)
    axes.grid(color=GRID, linewidth=0.8)
    ticks = quantity.ticks.get(quantity.axes[0], range(1, len(quantity.values) + 1))
    for tick, way, color, marker in zip(ticks, quantity.values, cycle(COLORS), cycle(MARKERS), strict=False):
        axes.plot(*zip(*way, strict=True), color=color, marker=marker, markersize=4, linewidth=1.3)
        if np.isfinite(way[-1]).all():
            label = {"boxstyle": "round,pad=0.25", "facecolor": color, "edgecolor": "white"}
            axes.annotate(str(tick), way[-1], color="white", fontsize=LABEL_SIZE, ha="center", va="center", bbox=label)
    return figure


def comparison_figure(records: Mapping[str, LayerRecord], *, span: Range = "fixed") -> Figure:
    """Several runs side by side: their first curve that is better high or low, the similarity to the last layer, and
    each run's first matrix.

    Args:
        records: by the run's name, one record; L may differ between runs. A panel says so where a run did not record
            what belongs there.
        span: of the heat maps' colours.
    """
    left, side, gap, columns = _LEFT, 2.55, 0.6, 3
    pitch = side + 0.9  # one row of matrices with its title and labels
    width = columns * side + (columns - 1) * gap
    curve_width, curve_height = (width - 0.9) / 2, 2.5
    below = -(-len(records) // columns) * pitch
    figure = sheet(left + width + 1.0, below + curve_height + 0.9 + legend_height(records, width))

    worth, matrix = shared_name(records.values(), "worth"), shared_name(records.values(), "matrix")
    lines = {}
    for panel, key in enumerate((worth, matrix)):
        found = {name: record.quantities.get(key) for name, record in records.items()}
        axes = place(figure, left + panel * (curve_width + 0.9), below + 0.5, curve_width, curve_height)
        one = next((quantity for quantity in found.values() if quantity is not None), None)
        told = "" if one is None else one.name_of(key)
        write_title(axes, f"{_title(told)} by layer" if panel == 0 else f"{_title(told)} to the last layer")
        write_labels(axes, "layer", told)
        empty = Quantity(values=[], axes=(LAYER,))
        shown = {name: empty if q is None else q.to_last() if q.is_matrix else q for name, q in found.items()}
        lines = draw_curves(axes, shown)
    draw_legend(figure, lines, left, figure.get_figheight() - 0.08, width)

    matrices = {name: record.quantities[matrix] for name, record in records.items() if matrix in record.quantities}
    values = [quantity.values for quantity in matrices.values()]
    first = next(iter(matrices.values()), Quantity(values=[]))
    scale = scale_of(first.name_of(matrix), first, values, span)
    for position, name in enumerate(records):
        row, column = divmod(position, columns)
        axes = place(figure, left + column * (side + gap), below - (row + 1) * pitch + 0.5, side, side)
        write_title(axes, name)
        write_labels(axes, "layer", "" if column else "layer")
        if name in matrices:
            draw_matrix(axes, matrices[name].values, scale)
        else:
            say_not_recorded(axes)
    if matrices:
        beside = left + min(len(records), columns) * (side + gap) - gap + 0.18
        draw_color_bar(place(figure, beside, below - pitch + 0.5, 0.14, side), values, scale)
    return figure


def _title(name: str) -> str:
    return name[:1].upper() + name[1:]
