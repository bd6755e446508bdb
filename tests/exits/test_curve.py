"""The curve against single thresholds, and its bands against the standard errors of proportions and means."""

from math import sqrt
from typing import Any

import pytest
import torch

from layersim.errors import UserError
from layersim.exits import POLICIES, Confidence, ExitCurve, exit_curve, exit_layer, summarize
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
