"""The axes of the page's charts, as Vega draws them: ticks at layers alone, and labels that say whole numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from layersim.report.drawing.specifications import LAYERS, lines
from layersim.report.quantity import LAYER
from tests.report.test_figures import said


def axes_of(values: Sequence[float], unit: str, width: int, **more: Any) -> list[str]:
    """The text of the page's chart of a curve: the ticks across, its title, the ticks upwards, the legend's."""
    found = [{"id": place, "x": place + 1, "value": value, "y": place + 1} for place, value in enumerate(values)]
    spec = lines(LAYER, unit, **more) | {"width": width, "height": 250}
    return said(spec | {"datasets": {"now": found, "others": [], "time": []}})


@pytest.mark.parametrize("width", [300, 560, 1100])
@pytest.mark.parametrize("layers", [*range(1, 8)])
def test_the_pages_axis_of_layers_has_ticks_at_layers_alone(layers: int, width: int) -> None:
    values = [0.15 + 0.1 * layer for layer in range(layers)]
    shown = axes_of(values, "", width, series=LAYERS)
    every = [str(layer + 1) for layer in range(layers)]
    assert shown[: layers + 1] == [*every, LAYER]
    legend = [text for text in shown[layers + 1 :] if "." not in text and text != LAYER]
    assert legend
    assert {*legend} <= {*every}
    assert len(legend) == len({*legend}), legend


@pytest.mark.parametrize("ends", [(7.9, 11.3), (8.2, 14.2), (121, 190), (20, 9000)])
def test_the_pages_logarithmic_axis_has_labels_at_both_ends(ends: tuple[float, float]) -> None:
    shown = axes_of(list(np.geomspace(*ends, 5)), "ratio", 300, log=True)
    told = [float(text) for text in shown[shown.index(LAYER) + 1 :]]
    assert told == sorted({*told})
    room = (told[-1] / told[0]) ** (2 / (len(told) - 1))  # as far as two labels are apart
    assert told[0] < ends[0] * room
    assert told[-1] > ends[1] / room


def test_no_layer_0_is_named_on_the_page() -> None:
    shown = axes_of([0.15] * 48, "", 300)
    assert shown[: shown.index(LAYER)] == ["10", "20", "30", "40"]
    assert axes_of([0.15] * 48, "", 560)[:2] == ["5", "10"]


@pytest.mark.parametrize(
    ("value", "unit", "label"),
    [(0.5, "", "0.5"), (0.503125, "", "0.503125"), (2.0, "", "2"), (0.503, "share", "50.3%"), (0.0, "share", "0%")],
)
def test_a_curve_of_one_value_names_it(value: float, unit: str, label: str) -> None:
    assert axes_of([value] * 3, unit, 560) == ["1", "2", "3", LAYER, label]
