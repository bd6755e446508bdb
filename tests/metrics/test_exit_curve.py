"""Early exit by confidence, counted from readouts: by hand, against exits' own rule, and on any split."""

from math import inf, nan

import pytest
import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.exits import exit_layer
from layersim.metrics import ExitCounts, accuracy_at, exit_counts, exit_curve_area
from layersim.metrics.exit_curve import THRESHOLDS
from layersim.outputs import LayerFeatures, LayerOutput, Readout
from tests.exits.readouts import pool


def output(confidences: Tensor, predictions: Tensor, targets: Tensor) -> LayerOutput:
    layers, samples = confidences.shape
    features = LayerFeatures(torch.zeros(layers, samples, 2), targets, torch.arange(samples))
    return LayerOutput(
        features, Readout(torch.zeros(layers), predictions, confidences, torch.empty(0)), torch.tensor(0.0)
    )


def pool_output(rows: Tensor) -> LayerOutput:
    table = pool().select(rows)
    return output(table.scores, table.predictions, table.targets)


def test_counts_by_hand() -> None:
    confidences = torch.tensor([[0.5, 0.9, nan], [0.9, 0.4, 0.2], [0.3, 0.3, 0.3]])
    predictions = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 1]])
    exits, correct = exit_counts(
        confidences, predictions, torch.tensor([1, 0, 1]), torch.tensor([0.0, 0.5, 0.9, 0.95, inf])
    )
    assert exits.tolist() == [[2, 1, 0], [2, 0, 1], [1, 1, 1], [0, 0, 3], [0, 0, 3]]
    assert correct.tolist() == [[1, 0, 0], [1, 0, 1], [0, 1, 1], [0, 0, 2], [0, 0, 2]]


def test_each_threshold_is_the_exit_rule() -> None:
    table = pool().select(torch.arange(1000))
    metric = ExitCounts(6)
    metric.update(output(table.scores, table.predictions, table.targets))
    means, accuracies = metric.compute()
    for place, threshold in enumerate(THRESHOLDS):
        exits = exit_layer(table.scores, None if threshold == inf else threshold)
        right = table.predictions.gather(0, exits.unsqueeze(0))[0] == table.targets
        assert metric.exits[place].tolist() == torch.bincount(exits, minlength=6).tolist()
        assert means[place].item() == pytest.approx(exits.double().mean().item() + 1, abs=1e-12)
        assert accuracies[place].item() == pytest.approx(right.double().mean().item(), abs=1e-12)


def test_any_split_gives_the_same_numbers() -> None:
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    whole, parts = ExitCounts(6), [ExitCounts(6), ExitCounts(6)]
    whole.update(pool_output(torch.arange(1000)))
    for number, rows in enumerate(torch.split(order, 37)):
        parts[number % 2].update(pool_output(rows))
    merged = ExitCounts(6)
    merged.exits = parts[0].exits + parts[1].exits  # what reducing by summation does
    merged.correct = parts[0].correct + parts[1].correct
    merged.update(pool_output(torch.arange(0)))
    for found, expected in zip(merged.compute(), whole.compute(), strict=True):
        assert torch.equal(found, expected)


def test_the_grid_runs_from_all_leaving_at_once_to_nobody_leaving_early() -> None:
    assert (len(THRESHOLDS), THRESHOLDS[0], THRESHOLDS[-2:]) == (64, 0.0, [1.0, inf])
    assert sorted(set(THRESHOLDS)) == THRESHOLDS
    assert torch.tensor(THRESHOLDS).tolist() == THRESHOLDS, "float32 numbers"
    metric = ExitCounts(6)
    metric.update(pool_output(torch.arange(500)))
    means, accuracies = metric.compute()
    assert (means[0], means[-1]) == (1, 6)
    assert means.tolist() == sorted(means.tolist())
    right = (pool().predictions == pool().targets)[:, :500].double().mean(dim=1)
    torch.testing.assert_close(accuracies[[0, -1]], right[[0, -1]], rtol=0, atol=1e-12)


def test_the_area_by_hand() -> None:
    means = torch.tensor([1, 1, 2, 4, 4, 5], dtype=torch.float64)
    accuracies = torch.tensor([0.2, 0.2, 0.6, 0.8, 0.8, 0.8], dtype=torch.float64)
    assert exit_curve_area(means, accuracies) == pytest.approx((1 * 0.4 + 2 * 0.7 + 1 * 0.8) / 4)
    assert exit_curve_area(means, torch.ones(6, dtype=torch.float64)) == 1
    assert exit_curve_area(means, 0 * accuracies) == 0
    one_layer = torch.ones(2, dtype=torch.float64)
    assert exit_curve_area(one_layer, one_layer / 4) == 0.25


def test_accuracy_between_two_thresholds_is_a_coins() -> None:
    means, accuracies = torch.tensor([1.0, 1.0, 2.0, 4.0]), torch.tensor([0.25, 0.25, 0.5, 1.0])
    assert [accuracy_at(means, accuracies, at) for at in (1, 1.5, 2, 3, 4)] == [0.25, 0.375, 0.5, 0.75, 1.0]
    with pytest.raises(UserError, match=r"mean exit layer of 1 … 4, but got 4\.5"):
        accuracy_at(means, accuracies, 4.5)
    draw = torch.Generator().manual_seed(0)
    scores, right = pool().scores, (pool().predictions == pool().targets).double()
    low, high = exit_layer(scores, 0.6), exit_layer(scores, 0.9)
    mixed = torch.where(torch.rand(len(low), generator=draw) < 0.5, low, high)
    points = torch.stack([low, high]).double().mean(dim=1) + 1
    values = torch.stack([right.gather(0, exits.unsqueeze(0)).mean() for exits in (low, high)])
    between = accuracy_at(points, values, mixed.double().mean().item() + 1)
    assert right.gather(0, mixed.unsqueeze(0)).mean().item() == pytest.approx(between, abs=0.005)
