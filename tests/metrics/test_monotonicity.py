"""What rises with the layer: by hand, by loops, where the geodesic assumption holds and where it is broken."""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.metrics import TargetProbability, cosine_to_last, rise, rise_record
from layersim.outputs import LayerFeatures, LayerOutput, Readout
from layersim.similarity import cosine
from layersim.similarity.directions import Centering

from .paths import drawn, straight


def output(probabilities: Tensor, targets: bool = True) -> LayerOutput:
    layers, samples = probabilities.shape
    classes = torch.zeros(samples, dtype=torch.int64) if targets else None
    features = LayerFeatures(torch.zeros(layers, samples, 2), classes, torch.arange(samples))
    empty = torch.empty(0)
    return LayerOutput(features, Readout(empty, empty, empty, probabilities.logit() if targets else empty, empty))


def test_shares_by_hand() -> None:
    values = torch.tensor([[0.1, 0.1, 0.4, 0.2], [0.2, 0.1, 0.3, 0.3], [0.3, 0.2, 0.5, 0.9]])
    measured = rise(values)
    torch.testing.assert_close(measured.mean, torch.tensor([0.2, 0.225, 0.475], dtype=torch.float64))
    assert measured.steps.tolist() == [0.5, 1.0], "of the first step, equal values do not rise"
    assert measured.throughout == 0.5


def test_nan_is_neither_a_rise_nor_a_fall() -> None:
    values = torch.tensor([[0.1, 0.2], [0.2, 0.3], [math.nan, 0.4], [0.4, 0.5], [0.5, 0.6]])
    measured = rise(values)
    assert measured.mean.isnan().tolist() == [False, False, True, False, False]
    assert measured.steps.isnan().tolist() == [False, True, True, False]
    assert measured.steps[[0, 3]].tolist() == [1, 1]
    assert math.isnan(measured.throughout)


@pytest.mark.parametrize("centering", get_args(Centering))
def test_cosine_to_last_is_the_cosine_before_its_mean(centering: Centering) -> None:
    features = drawn(4, 30, 6).float()
    values = cosine_to_last(features, centering=centering)
    torch.testing.assert_close(values.mean(1), cosine(features, centering=centering)[:, -1], rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="centering: expected one of none, samples, components"):
        cosine_to_last(features, centering="layers")  # type: ignore[arg-type]


def test_cosine_to_last_by_a_loop() -> None:
    features = drawn(4, 30, 6) + 50
    centred = features - features.mean(1, keepdim=True)
    values = cosine_to_last(features)
    for layer in range(4):
        for sample in range(30):
            first, last = centred[layer, sample], centred[-1, sample]
            expected = (first @ last / (first.norm() * last.norm())).item()
            assert values[layer, sample].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("centering", get_args(Centering))
def test_theorem_2_1(centering: Centering) -> None:
    """On a segment COS to the last layer rises for every sample; a control whose path goes back breaks it."""
    features = straight()
    assert rise(cosine_to_last(features, centering=centering)).throughout == 1
    back = features[[0, 2, 1, 3, 4]]
    measured = rise(cosine_to_last(back, centering=centering))
    assert measured.throughout == 0
    assert measured.steps.tolist() == [1, 0, 1, 1]


def test_any_split_gives_the_same_probabilities() -> None:
    values = drawn(5, 200).sigmoid()
    whole, parts = TargetProbability(5), TargetProbability(5)
    whole.update(output(values))
    for rows in torch.split(torch.randperm(200, generator=torch.Generator().manual_seed(0)), 37):
        parts.update(output(values[:, rows]))
    found, expected = parts.compute(), whole.compute()
    assert found is not None
    assert expected is not None
    torch.testing.assert_close(found.mean, expected.mean, rtol=0, atol=1e-15)
    assert torch.equal(found.steps, expected.steps)
    assert found.throughout == expected.throughout == rise(values).throughout
    torch.testing.assert_close(expected.steps, rise(values).steps, rtol=0, atol=0)


def test_without_targets_nothing_is_measured() -> None:
    metric = TargetProbability(3)
    metric.update(output(drawn(3, 5), targets=False))
    assert metric.compute() is None


def test_two_layers_have_one_step() -> None:
    metric = TargetProbability(2)
    metric.update(output(torch.tensor([[0.1, 0.5], [0.2, 0.4]])))
    measured = metric.compute()
    assert measured is not None
    assert rise_record("p", measured) == {
        "p": pytest.approx([0.3, 0.3]),
        "p_rises": 0.5,
        "p_rises_by_step": [0.5],
    }
