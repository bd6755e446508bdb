"""Which layers an export keeps."""

import math

import pytest

from layersim.errors import UserError
from layersim.export.layers import fewest_layers, kept_layers


def test_a_number_keeps_the_first_layers() -> None:
    assert kept_layers(2, 3) == [0, 1]
    assert kept_layers(3, 3) == [0, 1, 2]
    assert kept_layers([0, 2], 3) == [0, 2]


@pytest.mark.parametrize("layers", [0, 4, -1])
def test_a_number_outside_the_model_is_refused(layers: int) -> None:
    with pytest.raises(UserError, match=rf"Expected 1 … 3 layers to keep, but got {layers}.*--layers"):
        kept_layers(layers, 3)


@pytest.mark.parametrize("layers", [[], [1, 2], [0, 2, 1], [0, 0], [0, 3]])
def test_a_list_that_is_no_ascending_choice_is_refused(layers: list[int]) -> None:
    with pytest.raises(UserError, match="ascending layer numbers from 0 to at most 2"):
        kept_layers(layers, 3)


@pytest.mark.parametrize(
    ("tolerance", "layers"),
    [(0.0, 4), (0.004, 3), (0.005, 2), (0.5, 1)],
)
def test_fewest_layers_within_a_tolerance(tolerance: float, layers: int) -> None:
    """0.972 − 0.967 is 0.0050000000000000044 in binary, and within 0.005 all the same."""
    assert 0.972 - 0.967 > 0.005
    assert fewest_layers([0.5, 0.967, 0.968, 0.972, 0.971, 0.972], tolerance) == layers


def test_a_layer_may_be_better_than_the_last() -> None:
    assert fewest_layers([0.2, 0.9, 0.8], 0.0) == 2


def test_accuracies_and_tolerances_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"tolerance in 0 … 1, but got -0\.1.*--tolerance"):
        fewest_layers([0.5], -0.1)
    with pytest.raises(UserError, match="finite accuracy for each layer"):
        fewest_layers([0.5, math.nan], 0.1)
    with pytest.raises(UserError, match="finite accuracy for each layer"):
        fewest_layers([], 0.1)
