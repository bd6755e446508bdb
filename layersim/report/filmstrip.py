"""How each layer drifts from what it was: a strip for each epoch looked back to, a frame for each later epoch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from layersim.errors import UserError
from layersim.report.drawing.canvas import INK, layer_ticks, place, sheet, write_labels, write_title
from layersim.report.drawing.heatmap import draw_color_bar, scale_of

Strips = dict[int, dict[int, list[float]]]
"""By the epoch looked back to, then by the later epoch: L similarities of each layer to itself, first layer first."""

_LEFT, _BELOW, _GAP = 0.6, 0.55, 0.4  # inches around and between the strips

_HOLE: dict[str, Any] = {"facecolor": "#d9d9d9", "edgecolor": "#a6a6a6", "hatch": "//////", "linewidth": 0}


def film_strips(strips: Mapping[int, Mapping[int, Sequence[float]]], *, measure: str) -> Figure:
    """Strips one below the other, on one axis of epochs: layer 1 at the bottom of each, its colours the similarity.

    The epoch looked back to is a frame with a dot; there every layer is itself. NaN is hatched. The colours' range
    belongs to the measure, as in heat maps.

    Args:
        strips: see `Strips`; epochs count as the trainer does, from 0.
        measure: `cka` or another measure's name, see `scale_of`.

    Raises:
        UserError: there is no strip.
    """
    if not strips:
        raise UserError("film strips need one earlier epoch or more to look back to, got none.")
    epochs = sorted({*strips, *(epoch for strip in strips.values() for epoch in strip)})
    layers = len(next(iter(next(iter(strips.values())).values())))
    width = min(max(0.4 * len(epochs), 2.6), 8.0)
    height = min(max(0.16 * layers, 0.5), 1.6)
    figure = sheet(_LEFT + width + 1.15, _BELOW + len(strips) * (height + _GAP) + 0.2)
    for row, (reference, strip) in enumerate(sorted(strips.items(), reverse=True)):
        axes = place(figure, _LEFT, _BELOW + row * (height + _GAP), width, height)
        _draw_strip(axes, epochs, reference, strip, measure)
        axes.set_xlim(-0.5, len(epochs) - 0.5)
        axes.set_ylim(0.5, layers + 0.5)
        shown = _ticks(len(epochs))
        axes.set_xticks(shown, [str(epochs[place]) for place in shown] if row == 0 else [])
        ticks = layer_ticks(layers)
        axes.set_yticks(ticks if len(ticks) * 0.15 <= height else [1, layers])
        write_labels(axes, "epoch" if row == 0 else "", "layer")
        write_title(axes, f"To epoch {reference}")
    tall = max(height, min(2.4, len(strips) * (height + _GAP) - _GAP))
    every = [list(strip.values()) for strip in strips.values()]
    draw_color_bar(place(figure, _LEFT + width + 0.2, _BELOW, 0.16, tall), every, measure)
    return figure


def _draw_strip(
    axes: Axes, epochs: Sequence[int], reference: int, strip: Mapping[int, Sequence[float]], measure: str
) -> None:
    """The frames of one strip, each at the place of its epoch among all."""
    scale = scale_of(measure)
    layers = len(next(iter(strip.values())))
    values = np.full((layers, len(epochs)), np.nan)
    for frame, epoch in enumerate(epochs):
        if epoch in strip:
            values[:, frame] = strip[epoch]
            if np.isnan(values[:, frame]).any():
                axes.add_patch(Rectangle((frame - 0.5, 0.5), 1, layers, **_HOLE))
    axes.pcolormesh(
        np.arange(len(epochs) + 1) - 0.5,
        np.arange(layers + 1) + 0.5,
        np.ma.masked_invalid(values),
        cmap=colormaps[scale.colors],
        norm=Normalize(scale.low, scale.high),
        edgecolors="white",
        linewidth=0.8 if len(epochs) <= 60 else 0.0,  # between frames; of many it would leave no colour
    )
    middle = (layers + 1) / 2
    axes.plot([epochs.index(reference)], [middle], marker="o", markersize=4, color=INK, clip_on=False)
    axes.tick_params(bottom=False, left=False)
    axes.spines[:].set_visible(False)


def _ticks(frames: int) -> list[int]:
    """The frames that get their epoch's number: all up to 20, else every 5th, 10th, 20th, 50th …"""
    steps = (step * 10**power for power in range(9) for step in (1, 5) if 10**power * step != 1)
    step = 1 if frames <= 20 else next(step for step in steps if frames / step <= 12)
    return list(range(0, frames, step))
