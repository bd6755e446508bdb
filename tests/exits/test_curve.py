"""Counts and the curve against single thresholds, and bands against the standard errors of proportions and means."""

from math import inf, nan, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.exits import (
    POLICIES,
    Confidence,
    ExitCounts,
    ExitCurve,
    accuracy_at,
    exit_counts,
    exit_curve,
    exit_curve_area,
    exit_layer,
    summarize,
)
from layersim.exits.curve import spread
from layersim.outputs import LayerFeatures, LayerOutput, Readout
from tests.exits.readouts import pool, table_of

THRESHOLDS = Confidence().thresholds(num_classes=10, num_layers=6)


def curve(rows: int = 2000, **options: Any) -> ExitCurve:
    return exit_curve(pool().select(torch.arange(rows)), THRESHOLDS, **options)


def test_each_point_is_what_its_threshold_does() -> None:
    table, found = pool().select(torch.arange(2000)), curve()
    for threshold, mean, accuracy in zip(found.threshold, found.mean_exit_layer, found.accuracy, strict=True):
        summary = summarize(table, Confidence(), threshold)
        assert (mean, accuracy) == pytest.approx((summary.mean_exit_layer, summary.accuracy), abs=1e-12)


def test_points_are_spread_from_all_leaving_at_layer_1_to_nobody_leaving_early() -> None:
    found = curve(points=21)
    assert (found.mean_exit_layer[0], found.mean_exit_layer[-1], found.threshold[-1]) == (1, 6, None)
    assert found.mean_exit_layer == pytest.approx(torch.linspace(1, 6, 21).tolist(), abs=0.05)
    given = found.threshold[:-1]
    assert set(given) <= set(THRESHOLDS)
    assert given == sorted(given, key=lambda threshold: threshold or 0)
    even = [THRESHOLDS[place] for place in torch.linspace(0, len(THRESHOLDS) - 1, 21).long().tolist()]
    means = [summarize(pool(), Confidence(), threshold).mean_exit_layer for threshold in even]
    assert sum(mean > 5.5 for mean in means) > 10, "the control: evenly thinned, most points would lie at the end"


def test_bands_are_those_of_a_proportion_and_of_a_mean() -> None:
    """Two sided 95 % of a normal mean, ± 1.96 σ / √n, which the counts here are near to."""
    table, found = pool().select(torch.arange(2000)), curve(points=9, resamples=20_000)
    for point, threshold in enumerate(found.threshold):
        low, high = found.accuracy_interval[point]
        share = found.accuracy[point]
        assert high - low == pytest.approx(2 * 1.96 * sqrt(share * (1 - share) / 2000), rel=0.05)
        assert (low + high) / 2 == pytest.approx(share, abs=0.001)
        low, high = found.mean_exit_layer_interval[point]
        spread = exit_layer(table.scores, threshold).double().std(correction=0).item()
        assert high - low == pytest.approx(2 * 1.96 * spread / sqrt(2000), rel=0.05)
        assert (low + high) / 2 == pytest.approx(found.mean_exit_layer[point], abs=0.005)
    assert found.mean_exit_layer_interval[0] == [1, 1]
    assert found.mean_exit_layer_interval[-1] == [6, 6]


def test_bands_are_those_of_drawing_samples_anew() -> None:
    """Cells drawn by multinomial counts against samples drawn one by one."""
    table, found = pool().select(torch.arange(300)), curve(300, points=5, resamples=20_000)
    exits = exit_layer(table.scores, found.threshold[2])
    right = (table.predictions.gather(0, exits.unsqueeze(0))[0] == table.targets).double()
    rows = torch.randint(300, (20_000, 300), generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    for values, interval in (
        (right, found.accuracy_interval[2]),
        (exits.double() + 1, found.mean_exit_layer_interval[2]),
    ):
        expected = values[rows].mean(dim=1).quantile(ends)
        torch.testing.assert_close(torch.tensor(interval, dtype=torch.float64), expected, rtol=0, atol=0.01)


def test_a_seed_gives_the_same_bands_again() -> None:
    assert curve(points=5) == curve(points=5)
    other = curve(points=5, seed=1)
    assert other.accuracy == curve(points=5).accuracy
    assert other.accuracy_interval != curve(points=5).accuracy_interval


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_has_a_curve(name: str) -> None:
    """On scores that lie in its range; few thresholds give few points."""
    low, high = POLICIES[name]().bounds(10, 6)
    scores = low + (high - low) * pool().scores[:, :500]
    table = table_of(torch.zeros(6, 500, 10), pool().targets[:500])
    found = exit_curve(type(table)(scores, *list(vars(table).values())[1:]), POLICIES[name]().thresholds(10, 6))
    assert found.threshold[-1] is None
    assert found.mean_exit_layer == sorted(found.mean_exit_layer)
    assert (found.mean_exit_layer[0], found.mean_exit_layer[-1]) == (1, 6)
    assert len(found.threshold) <= (7 if name == "patience" else 41)


def test_by_hand() -> None:
    sure, torn, wrong = [5.0, 0.0], [0.1, 0.0], [0.0, 5.0]
    logits = torch.tensor([[sure, torn, wrong], [sure, sure, sure]])
    found = exit_curve(table_of(logits, torch.zeros(3, dtype=torch.int64)), [0.5, 0.9, 1.0], points=3)
    assert found.threshold == [0.5, 0.9, None]
    assert found.mean_exit_layer == pytest.approx([1, 4 / 3, 2])
    assert found.accuracy == pytest.approx([2 / 3, 2 / 3, 1])
    assert found.accuracy_interval[-1] == [1, 1]


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(UserError, match="2 points and 1 resample, or more, for a curve of exits, but got 1 and 1000"):
        curve(points=1)
    with pytest.raises(UserError, match="got 41 and 0"):
        curve(resamples=0)
    with pytest.raises(UserError, match="Expected samples to draw a curve of exits from, but got none"):
        curve(0)
    with pytest.raises(UserError, match="each above the one before"):
        exit_curve(pool(), [0.5, 0.5])


def output(confidences: Tensor, predictions: Tensor, targets: Tensor) -> LayerOutput:
    layers, samples = confidences.shape
    features = LayerFeatures(torch.zeros(layers, samples, 2), targets, torch.arange(samples))
    return LayerOutput(
        features,
        Readout(torch.zeros(layers), predictions, confidences, torch.empty(0), torch.empty(0)),
        torch.tensor(0.0),
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
    for place, threshold in enumerate(metric.thresholds.tolist()):
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


@pytest.mark.parametrize("num_layers", [1, 2, 7])
def test_counts_are_those_of_every_threshold_by_itself(num_layers: int) -> None:
    draw = torch.Generator().manual_seed(0)
    scores = (torch.rand(num_layers, 300, generator=draw) * 20).round() / 20  # ties, with thresholds too
    scores[torch.rand(scores.shape, generator=draw) < 0.1] = nan
    scores[0, :5] = -inf
    predictions, targets = (torch.randint(2, shape, generator=draw) for shape in (scores.shape, (300,)))
    thresholds = torch.linspace(0, 1, 41)
    exits, correct = exit_counts(scores, predictions, targets, thresholds)
    for place, threshold in enumerate(thresholds.tolist()):
        layers = exit_layer(scores, threshold)
        right = predictions.gather(0, layers.unsqueeze(0))[0] == targets
        assert exits[place].tolist() == layers.bincount(minlength=num_layers).tolist()
        assert correct[place].tolist() == layers[right].bincount(minlength=num_layers).tolist()


def test_the_monitors_grid_is_that_of_the_policy_from_all_leaving_at_once_to_nobody() -> None:
    metric = ExitCounts(6)
    own = Confidence().thresholds(num_classes=10**9, num_layers=6)
    assert metric.thresholds[1:-1].tolist() == pytest.approx(own[1:], abs=1e-6)
    assert (metric.thresholds[0], metric.thresholds[-2], metric.thresholds[-1]) == (0, 1, inf)
    metric.update(pool_output(torch.arange(500)))
    means, accuracies = metric.compute()
    assert (means[0], means[-1]) == (1, 6)
    assert means.tolist() == sorted(means.tolist())
    right = (pool().predictions == pool().targets)[:, :500].double().mean(dim=1)
    torch.testing.assert_close(accuracies[[0, -1]], right[[0, -1]], rtol=0, atol=1e-12)


def test_what_is_shown_is_spread_over_the_mean_exit_layers() -> None:
    assert spread(torch.tensor([1.0, 1.0, 1.1, 1.9, 2.0, 2.0, 3.0]), 3) == [1, 5, 6], "of equals the last"
    assert spread(torch.tensor([3.0, 3.0, 3.0])) == [2]


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
