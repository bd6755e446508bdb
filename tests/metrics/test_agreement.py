"""Correlation over pairs of layers: by hand, and where there is none."""

import math

import pytest
import torch

from layersim.errors import UserError
from layersim.metrics import agreement


def test_only_pairs_of_different_layers_count_each_once() -> None:
    first = torch.tensor([[9.0, 1.0, 2.0], [-5.0, 9.0, 3.0], [-6.0, -7.0, 9.0]])
    second = torch.tensor([[1.0, 1.0, 4.0], [0.0, 8.0, 9.0], [0.0, 0.0, -1.0]])
    measured = agreement(first, second)
    assert measured.spearman == pytest.approx(1)
    # 1, 2, 3 against 1, 4, 9: covariance 8, variances 2 and 98/3
    assert measured.pearson == pytest.approx(8 / math.sqrt(2 * 98 / 3))
    assert agreement(first, -second).pearson == pytest.approx(-measured.pearson)


def test_equal_values_share_their_rank() -> None:
    first, second = torch.zeros(3, 3), torch.zeros(3, 3)
    first[0, 1], first[0, 2], first[1, 2] = 1, 1, 2
    second[0, 1], second[0, 2], second[1, 2] = 1, 2, 3
    assert agreement(first, second).spearman == pytest.approx(math.sqrt(0.75))


@pytest.mark.parametrize("layers", [1, 2])
def test_too_few_pairs(layers: int) -> None:
    measured = agreement(torch.ones(layers, layers), torch.ones(layers, layers))
    assert math.isnan(measured.pearson)
    assert math.isnan(measured.spearman)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_undefined_stays_undefined(value: float) -> None:
    matrix = torch.arange(16.0).view(4, 4)
    broken = matrix.clone()
    broken[0, 1] = value
    assert math.isnan(agreement(matrix, broken).pearson)
    assert math.isnan(agreement(torch.ones(4, 4), matrix).spearman)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"two L × L matrices, but got shapes \(3, 3\) and \(4, 4\)"):
        agreement(torch.ones(3, 3), torch.ones(4, 4))
