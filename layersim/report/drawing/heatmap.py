"""A matrix drawn into axes: colours whose range belongs to the quantity, values, and the colour bar."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from numpy.typing import ArrayLike, NDArray

from layersim.errors import UserError
from layersim.report.drawing.canvas import INK, LABEL_SIZE, TICK_SIZE, layer_ticks, width_in_points
from layersim.report.quantity import Quantity

_ZERO = -0.005  # values from here on are shown as 0.00
_SMALLEST_TEXT = 5.0  # points; below, digits run together at 120 dots an inch


Range = Literal["fixed", "data"]


@dataclass(frozen=True)
class Scale:
    """How a quantity is coloured: its name for people, the range of its colours, matplotlib's name of the colours."""

    name: str
    low: float
    high: float
    colors: str


def scale_of(name: str, quantity: Quantity, values: Sequence[ArrayLike], span: Range = "fixed") -> Scale:
    """The colours of a quantity.

    From dark to light where all values are 0 or more, else to both sides of 0. What is alike is bright, so that where
    lower is better the colours are turned.

    Args:
        name: of the quantity, for people.
        quantity: whose range `fixed` colours have, but for an end that it has not.
        values: all that will be drawn with these colours.
        span: `fixed`, for pictures of different epochs and runs that can be laid side by side; or `data`, from the
            least value to the greatest, where 0.90 and 0.99 shall be told apart.
    """
    every = np.concatenate([np.empty(0), *(np.asarray(each, dtype=np.float64).ravel() for each in values)])
    every = every[np.isfinite(every)]
    least, most = (float(every.min()), float(every.max())) if every.size else (0.0, 1.0)
    low, high = (None, None) if span == "data" else quantity.range
    if least >= _ZERO:
        low = least if low is None else max(low, 0.0)
        high = most if high is None else high
    else:
        low = high = max(-least, most) if low is None or high is None else max(abs(low), abs(high))
        low = -low
    if low == high:
        low, high = low - 0.5, high + 0.5
    turned = "_r" if (quantity.better == "lower") != (least < _ZERO) else ""
    return Scale(name, low, high, ("viridis" if least >= _ZERO else "RdBu") + turned)


def draw_matrix(
    axes: Axes, matrix: ArrayLike, scale: Scale, *, across: Sequence[Any] = (), up: Sequence[Any] = ()
) -> None:
    """Draws (L, M) values into axes, layer 1 at the bottom left.

    Args:
        axes: where to.
        matrix: NaN is hatched. Where cells are large enough, each shows its value.
        scale: the colours; values beyond it have the colour of its end.
        across: what stands along the M columns, and
        up: along the L rows; where empty, layers counted from 1.

    Raises:
        UserError: the matrix has not two dimensions, or no entries.
    """
    values = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise UserError(f"a heat map needs a matrix of layers × layers, got the shape {values.shape}.")
    rows, columns = values.shape
    axes.patch.set(facecolor="#d9d9d9", edgecolor="#a6a6a6", hatch="//////", linewidth=0)  # NaN is a hole in the mesh
    cells = axes.pcolormesh(  # imshow resamples, which takes longer than all else here
        np.arange(columns + 1) + 0.5,
        np.arange(rows + 1) + 0.5,
        np.ma.masked_invalid(values),
        cmap=colormaps[scale.colors],
        norm=Normalize(scale.low, scale.high),
    )
    for set_ticks, count, names in ((axes.set_xticks, columns, across), (axes.set_yticks, rows, up)):
        shown = layer_ticks(count)
        set_ticks(shown, [str(names[place - 1]) for place in shown] if len(names) else None)
    axes.tick_params(bottom=False, left=False)
    axes.spines[:].set_visible(False)
    _write_values(axes, cells, values)


def draw_color_bar(axes: Axes, matrices: Sequence[ArrayLike], scale: Scale) -> None:
    """The colours, pointed at an end beyond which a value of these matrices lies."""
    shown = np.concatenate([np.asarray(matrix, dtype=np.float64).ravel().round(2) for matrix in matrices])
    below, above = bool((shown < round(scale.low, 2)).any()), bool((shown > round(scale.high, 2)).any())
    bar = Colorbar(
        axes,
        ScalarMappable(Normalize(scale.low, scale.high), colormaps[scale.colors]),
        ticks=np.linspace(scale.low, scale.high, 5).tolist(),
        format="%.2f",
        extend="both" if below and above else "min" if below else "max" if above else "neither",
    )
    bar.outline.set_visible(False)
    axes.tick_params(labelsize=TICK_SIZE, colors=INK, length=3)
    bar.set_label(scale.name, fontsize=LABEL_SIZE, color=INK, parse_math=False)


def _write_values(axes: Axes, cells: QuadMesh, values: NDArray[np.float64]) -> None:
    """The value in each cell, where cells are large enough to read it."""
    size = min(10.0, 0.26 * width_in_points(axes) / values.shape[1])  # the five characters of −0.12 leave a margin
    if size < _SMALLEST_TEXT:
        return
    linear = cells.to_rgba(values)[..., :3] ** 2.2
    dark = linear @ (0.2126, 0.7152, 0.0722) < 0.18  # where white stands out better than black, by WCAG's contrast
    for (row, column), value in np.ndenumerate(values.round(2) + 0.0):  # + 0.0: no −0.00
        axes.text(
            column + 1,
            row + 1,
            f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "",
            ha="center",
            va="center_baseline",
            fontsize=size,
            color="white" if dark[row, column] else "black",
        )
