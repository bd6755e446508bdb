"""Film strips read back from the figure: which colour stands at which epoch and layer."""

import math

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.patches import Rectangle

from layersim.errors import UserError
from layersim.report.filmstrip import film_strips

STRIPS = {0: {1: [0.9, 0.8], 4: [0.7, math.nan], 9: [0.5, 0.1]}, 4: {9: [0.95, 0.6]}}


def frames(axes: Axes) -> dict[int, list[float]]:
    """By the place of a frame, the values of its layers; frames that hold nothing, not even a hole, are left out."""
    (mesh,) = axes.collections
    assert isinstance(mesh, QuadMesh)
    values = np.ma.filled(np.ma.asarray(mesh.get_array()), math.nan)
    holes = {round(patch.get_center()[0]) for patch in axes.patches if isinstance(patch, Rectangle)}
    return {
        place: column.tolist() for place, column in enumerate(values.T) if place in holes or not np.isnan(column).all()
    }


def test_each_frame_stands_at_its_epoch_in_its_strip() -> None:
    figure = film_strips(STRIPS, measure="cka")
    late, early = figure.axes[:2]  # from the bottom up
    assert [axes.get_title(loc="left") for axes in (early, late)] == ["To epoch 0", "To epoch 4"]
    assert frames(early) == {1: [0.9, 0.8], 2: [0.7, pytest.approx(math.nan, nan_ok=True)], 3: [0.5, 0.1]}
    assert len(early.patches) == 1, "what could not be measured is hatched"
    assert frames(late) == {3: [0.95, 0.6]}, "the same epoch stands at the same place in both"
    assert [label.get_text() for label in late.get_xticklabels()] == ["0", "1", "4", "9"]
    dots = [float(axes.lines[0].get_xdata()[0]) for axes in (early, late)]  # type: ignore[index, arg-type]
    assert dots == [0, 2], "where the strip looks back to"
    mesh = late.collections[0]
    mesh.update_scalarmappable()
    np.testing.assert_allclose(np.asarray(mesh.get_facecolor())[3], colormaps["viridis"](0.95))
    assert late.get_position().y0 < early.get_position().y0


def test_many_epochs_get_few_numbers() -> None:
    figure = film_strips({0: {epoch: [0.5] * 48 for epoch in range(1, 200)}}, measure="cka")
    strip = figure.axes[0]
    assert [label.get_text() for label in strip.get_xticklabels()] == [str(epoch) for epoch in range(0, 200, 50)]
    assert len(strip.get_yticks()) < 12
    assert figure.get_figwidth() < 10


def test_without_a_strip_there_is_no_figure() -> None:
    with pytest.raises(UserError, match="one earlier epoch or more to look back to, got none"):
        film_strips({}, measure="cka")
