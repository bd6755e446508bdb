"""Figures of what was measured layer by layer: pure functions from numbers to a matplotlib figure.

Layers count from 1. Scales of shares and similarities are fixed, or in coarse steps, so that pictures of different
epochs and runs can be laid side by side.
Letters: L layers, M layers of the other model (L again within one model).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from layersim.errors import UserError
from layersim.report.drawing.canvas import (
    COLORS,
    INK,
    LABEL_SIZE,
    place,
    sheet,
    write_labels,
    write_title,
)
from layersim.report.drawing.curves import draw_curves, say_not_recorded, scale_axes
from layersim.report.drawing.heatmap import draw_color_bar, draw_matrix, scale_of
from layersim.report.drawing.legend import draw_legend, legend_height
from layersim.report.records import LayerRecord


def similarity_heatmap(matrix: ArrayLike, *, title: str, measure: str) -> Figure:
    """The similarity of every pair of layers; layer 1 at the bottom left.

    The colours' range belongs to the measure and never to the matrix; values beyond it have the colour of its end, and
    the colour bar is pointed there. NaN is hatched. Up to 16 layers each cell also shows its value.

    Args:
        matrix: (L, M).
        title: stands above; cut in its middle where it is too long.
        measure: `cosine`, `cka` or another measure's name, see `scale_of`.
    """
    side = 4.6
    figure = sheet(side + 1.75, side + 1.05)
    axes = place(figure, 0.6, 0.55, side, side)
    write_title(axes, title)
    write_labels(axes, "layer", "layer")
    draw_matrix(axes, matrix, measure)
    draw_color_bar(place(figure, side + 0.8, 0.55, 0.16, side), [matrix], measure)
    return figure


def layer_accuracy_curve(accuracies: Mapping[str, Sequence[float]], *, title: str = "Layer accuracy") -> Figure:
    """The accuracy at every layer, one curve a run.

    Args:
        accuracies: by the run's name, its L accuracies in 0 … 1; L may differ between runs.
        title: stands above.
    """
    return _layer_curve(accuracies, title, "accuracy")


def layer_perplexity_curve(perplexities: Mapping[str, Sequence[float]], *, title: str = "Layer perplexity") -> Figure:
    """The perplexity of a token at every layer, one curve a run.

    Args:
        perplexities: by the run's name, its L perplexities; L may differ between runs.
        title: stands above.
    """
    return _layer_curve(perplexities, title, "perplexity")


def _layer_curve(values: Mapping[str, Sequence[float]], title: str, quantity: str) -> Figure:
    width = 5.6
    legend = legend_height(values, width)
    figure = sheet(width + 0.8, 4.2 + legend)
    axes = place(figure, 0.65, 0.55 + legend, width, 3.2)
    write_title(axes, title)
    write_labels(axes, "layer", quantity)
    lines = draw_curves(axes, values, perplexities=quantity == "perplexity")
    draw_legend(figure, lines, 0.65, legend, width)
    return figure


def saturation_histogram(counts: Sequence[int], *, title: str = "Saturation layer", unit: str = "samples") -> Figure:
    """At which layer the samples' predictions become final: the share at each layer, and the share up to it.

    Args:
        counts: (L,) samples whose saturation layer is this one.
        title: stands above.
        unit: what a sample is.

    Raises:
        UserError: no sample was counted.
    """
    total = sum(counts)
    if total == 0:
        raise UserError("a saturation histogram needs one sample or more, got none.")
    shares = np.asarray(counts) / total
    layers = range(1, len(counts) + 1)
    figure = sheet(6.4, 4.5)
    axes = place(figure, 0.75, 0.85, 5.5, 3.2)
    axes.bar(layers, shares, width=0.8, color=COLORS[0], label="at this layer")
    axes.plot(
        layers,
        shares.cumsum(),
        color=COLORS[1],
        marker="o",
        markersize=4,
        clip_on=False,
        label="at this layer or before",
    )
    scale_axes(axes, len(counts))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    write_title(axes, title)
    write_labels(axes, "layer", f"share of {total:,} {unit}")
    below = (0.5, -0.15)
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=below, frameon=False, fontsize=LABEL_SIZE, labelcolor=INK)
    return figure


def comparison_figure(records: Mapping[str, LayerRecord], *, measure: str = "cosine") -> Figure:
    """Several runs side by side: accuracy by layer (of language models perplexity), similarity to the last layer, and
    each run's similarity matrix.

    Args:
        records: by the run's name, one record; L may differ between runs.
        measure: of the similarities. A panel says so where a run did not record what belongs there.
    """
    left, side, gap, columns = 0.65, 2.55, 0.6, 3
    pitch = side + 0.9  # one row of matrices with its title and labels
    width = columns * side + (columns - 1) * gap
    curve_width, curve_height = (width - 0.9) / 2, 2.5
    below = -(-len(records) // columns) * pitch
    figure = sheet(left + width + 1.0, below + curve_height + 0.9 + legend_height(records, width))

    axes = place(figure, left, below + 0.5, curve_width, curve_height)
    tokens = all(record.perplexity for record in records.values())
    quantity = "perplexity" if tokens else "accuracy"
    write_title(axes, f"{quantity.capitalize()} by layer")
    write_labels(axes, "layer", quantity)
    worth = {name: getattr(record, quantity) or [] for name, record in records.items()}
    lines = draw_curves(axes, worth, perplexities=tokens)
    draw_legend(figure, lines, left, figure.get_figheight() - 0.08, width)

    matrices = {name: record.similarity[measure] for name, record in records.items() if measure in record.similarity}
    axes = place(figure, left + curve_width + 0.9, below + 0.5, curve_width, curve_height)
    write_title(axes, "Similarity to the last layer")
    write_labels(axes, "layer", scale_of(measure).name)
    draw_curves(axes, {name: [row[-1] for row in matrices.get(name, [])] for name in records})

    for position, name in enumerate(records):
        row, column = divmod(position, columns)
        axes = place(figure, left + column * (side + gap), below - (row + 1) * pitch + 0.5, side, side)
        write_title(axes, name)
        write_labels(axes, "layer", "" if column else "layer")
        if name in matrices:
            draw_matrix(axes, matrices[name], measure)
        else:
            say_not_recorded(axes)
    if matrices:
        last = min(len(records), columns)
        bar = place(figure, left + last * (side + gap) - gap + 0.18, below - pitch + 0.5, 0.14, side)
        draw_color_bar(bar, list(matrices.values()), measure)
    return figure


def similarity_to_last_curve(matrices: Mapping[str, ArrayLike], intervals: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Every layer's similarity to the last, a curve a measure, each with the band of its interval.

    Args:
        matrices: by the measure's name, (L, L).
        intervals: by the measure's name, `low` and `high`, (L, L) each, and their `confidence`.
    """
    width = 5.6
    to_last = {name: np.asarray(matrix, dtype=np.float64)[:, -1] for name, matrix in matrices.items()}
    names = {name: scale_of(name).name for name in matrices}
    legend = legend_height(names.values(), width)
    figure = sheet(width + 0.8, 4.2 + legend)
    axes = place(figure, 0.65, 0.55 + legend, width, 3.2)
    confidences = sorted({f"{ends['confidence']:.4g}" for ends in intervals.values()})
    write_title(axes, f"Similarity to the last layer, intervals at {' and '.join(confidences)}")
    write_labels(axes, "layer", "similarity")
    lines = draw_curves(axes, {names[name]: values.tolist() for name, values in to_last.items()})
    for name, ends in intervals.items():
        low, high = (np.asarray(ends[end], dtype=np.float64)[:, -1] for end in ("low", "high"))
        color = lines[names[name]].get_color()
        axes.fill_between(range(1, len(low) + 1), low, high, color=color, alpha=0.22, linewidth=0)
    draw_legend(figure, lines, 0.65, legend, width)
    return figure
