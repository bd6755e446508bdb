"""A matrix of similarities drawn into axes: colours whose range belongs to the measure, values, and the colour bar."""

from collections.abc import Sequence
from dataclasses import dataclass

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

ANNOTATED_LAYERS = 16
"""With more layers a cell is too small for its value."""

_SMALLEST_TEXT = 5.0  # points; below, digits run together at 120 dots an inch


@dataclass(frozen=True)
class Scale:
    """How a measure is shown: its name for people, the range of its colours, matplotlib's name of the colours."""

    name: str
    low: float
    high: float
    colors: str


SCALES = {
    "cosine": Scale("cosine similarity", -1, 1, "RdBu_r"),
    "angular": Scale("angular distance", 0, 1, "viridis_r"),
    "cka": Scale("linear CKA", 0, 1, "viridis"),
    "rbf_cka": Scale("RBF CKA", 0, 1, "viridis"),
    "cknna": Scale("CKNNA", 0, 1, "viridis"),
    "mutual_knn": Scale("mutual nearest neighbours", 0, 1, "viridis"),
    "rsa": Scale("RSA", -1, 1, "RdBu_r"),
    "procrustes": Scale("Procrustes similarity", 0, 1, "viridis"),
    "mean_cca": Scale("mean CCA", 0, 1, "viridis"),
    "svcca": Scale("SVCCA", 0, 1, "viridis"),
    "pwcca": Scale("PWCCA", 0, 1, "viridis"),
    "r2": Scale("regression R²", 0, 1, "viridis"),
}


def scale_of(measure: str) -> Scale:
    """A measure not in `SCALES` is shown from −1 to 1, where whatever is normalised like a correlation lies."""
    return SCALES.get(measure, Scale(measure, -1, 1, "RdBu_r"))


def draw_matrix(axes: Axes, matrix: ArrayLike, measure: str) -> None:
    """Draws (L, M) similarities into square axes, layer 1 at the bottom left.

    Raises:
        UserError: the matrix has not two dimensions, or no entries.
    """
    values = np.asarray(matrix, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise UserError(f"a heat map needs a matrix of layers × layers, got the shape {values.shape}.")
    scale = scale_of(measure)
    up, across = values.shape
    axes.patch.set(facecolor="#d9d9d9", edgecolor="#a6a6a6", hatch="//////", linewidth=0)  # NaN is a hole in the mesh
    cells = axes.pcolormesh(  # imshow resamples, which takes longer than all else here
        np.arange(across + 1) + 0.5,
        np.arange(up + 1) + 0.5,
        np.ma.masked_invalid(values),
        cmap=colormaps[scale.colors],
        norm=Normalize(scale.low, scale.high),
    )
    axes.set_xticks(layer_ticks(across))
    axes.set_yticks(layer_ticks(up))
    axes.tick_params(bottom=False, left=False)
    axes.spines[:].set_visible(False)
    _write_values(axes, cells, values)


def draw_color_bar(axes: Axes, matrices: Sequence[ArrayLike], measure: str) -> None:
    """The measure's colours, pointed at an end beyond which a value of these matrices lies."""
    scale = scale_of(measure)
    shown = np.concatenate([np.asarray(matrix, dtype=np.float64).ravel().round(2) for matrix in matrices])
    below, above = bool((shown < scale.low).any()), bool((shown > scale.high).any())
    bar = Colorbar(
        axes,
        ScalarMappable(Normalize(scale.low, scale.high), colormaps[scale.colors]),
        ticks=np.linspace(scale.low, scale.high, 5).tolist(),
        extend="both" if below and above else "min" if below else "max" if above else "neither",
    )
    bar.outline.set_visible(False)
    axes.tick_params(labelsize=TICK_SIZE, colors=INK, length=3)
    bar.set_label(scale.name, fontsize=LABEL_SIZE, color=INK, parse_math=False)


def _write_values(axes: Axes, cells: QuadMesh, values: NDArray[np.float64]) -> None:
    """The value in each cell, where cells are large enough to read it."""
    layers = max(values.shape)
    cell = width_in_points(axes) / layers
    size = min(10.0, 0.26 * cell)  # the five characters of −0.12 leave a margin in the cell
    if layers > ANNOTATED_LAYERS or size < _SMALLEST_TEXT:
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
