"""How many layers a task needs: relative to the best layer, in absolute terms, and by the paired interval."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.metrics import LayerAccuracy, RightAtBoth, effective_depth, measured_depth, paired_interval
from tests.metrics.test_readout_metrics import PREDICTIONS, TARGETS, output

NEWS = [0.252, 0.313, 0.622, 0.887, 0.886, 0.883]
"""Of a run whose best layer was the fourth: the sixth was told, since none reaches 0.95."""


@pytest.mark.parametrize(
    ("epsilon", "depth"),
    [(0.0, 4), (0.004, 3), (0.005, 2), (0.5, 1), (1.0, 1)],
)
def test_the_first_layer_within_epsilon_of_the_best(epsilon: float, depth: int) -> None:
    """0.972 − 0.967 is 0.0050000000000000044 in binary, and within 0.005 all the same."""
    assert 0.972 - 0.967 > 0.005
    assert effective_depth([0.5, 0.967, 0.968, 0.972, 0.971, 0.972], epsilon) == depth


def test_the_best_layer_need_not_be_the_last() -> None:
    assert effective_depth(NEWS) == 4
    assert effective_depth(NEWS, of=1.0) is None, "no layer is within 0.01 of 1, and the last is no stand-in"
    assert effective_depth([0.2, 0.9, 0.8], 0.0) == 2
    assert effective_depth([0.2, 0.8, 0.8], 0.0) == 2, "of layers alike the first"
    assert effective_depth([0.7]) == 1


def test_small_accuracies_have_a_depth_too() -> None:
    """Of tokens: an absolute ε of 0.05 would ask for 0.95."""
    assert effective_depth([0.21, 0.29, 0.301, 0.305]) == 3
    assert effective_depth([0.0, 0.0]) == 1


def test_nan_is_within_nothing_and_never_the_best() -> None:
    assert effective_depth([math.nan, 0.5, math.nan, 0.6]) == 4
    assert effective_depth([math.nan, 0.595, math.nan, 0.6]) == 2
    assert effective_depth([math.nan, math.nan]) is None
    assert effective_depth([math.nan, 0.96], 0.05, of=1.0) == 2


@pytest.mark.parametrize(("epsilon", "depth"), [(0.5, 1), (0.25, 2), (0.1, 3), (0.06, 4), (0.05, None), (0.0, None)])
def test_the_papers_absolute_depth(epsilon: float, depth: int | None) -> None:
    accuracy = torch.tensor([0.5, 0.75, 0.9, 0.94], dtype=torch.float64)
    assert effective_depth(accuracy, epsilon, of=1.0) == depth


@pytest.mark.parametrize("of", [50, 100, 360, 1000])
def test_a_share_that_is_just_enough_is_enough(of: int) -> None:
    """41 of 50 with ε = 0.18, and all such: 1 − 0.18 is 0.8200000000000001 in binary."""
    for wrong in range(of):
        share = torch.tensor([(of - wrong) / of, 1.0], dtype=torch.float64)
        for top in (None, 1.0):
            assert effective_depth(share, wrong / of, of=top) == 1
            if wrong:
                assert effective_depth(share, (wrong - 1) / of, of=top) == 2


def test_an_impossible_epsilon_is_refused() -> None:
    with pytest.raises(UserError, match=r"epsilon at least 0 and at most 1, but got 1\.5"):
        effective_depth(torch.tensor([0.5]), 1.5)


def test_pairs_are_counted_whatever_the_batches() -> None:
    """By hand: layer 3 is right where layer 2 is wrong once, and layer 2 nowhere where layer 3 is wrong."""
    metric, accuracy = RightAtBoth(4), LayerAccuracy(4)
    for part in (slice(0, 2), slice(2, 5)):
        for one in (metric, accuracy):
            one.update(output(PREDICTIONS[:, part], TARGETS[part]))
    counts, samples = metric.compute()
    right = PREDICTIONS == TARGETS
    assert counts.tolist() == [[int((one & other).sum()) for other in right] for one in right]
    assert (counts.diagonal().double() / samples).tolist() == accuracy.compute().tolist()
    assert (int(counts[2, 2] - counts[2, 1]), int(counts[1, 1] - counts[2, 1])) == (1, 0)
    assert counts.dtype == torch.int64


def test_the_paired_interval_by_hand() -> None:
    """(12 − 4) / 102 ∓ 1.96 √(((12 + 4 + 1) / 102 − (8 / 102)²) / 102)."""
    low, high = paired_interval(12, 4, 100)
    assert (low, high) == pytest.approx((0.000680, 0.156183), abs=1e-6)
    assert paired_interval(4, 12, 100) == pytest.approx((-high, -low))
    low, high = paired_interval(0, 0, 100)
    assert low == -high < 0, "two layers that never differ on 100 samples may yet differ"


@pytest.mark.parametrize(("first", "second"), [(0.02, 0.02), (0.05, 0.01), (0.2, 0.1)])
def test_the_paired_interval_covers_the_truth_19_times_in_20(first: float, second: float) -> None:
    """Of 200 samples; the control is the plain interval, without the half samples."""
    rng = np.random.default_rng(0)
    draws = rng.multinomial(200, [first, second, 1 - first - second], size=4000)[:, :2]
    ends = np.array([paired_interval(int(more), int(less), 200) for more, less in draws])
    covered = ((ends[:, 0] <= first - second) & (first - second <= ends[:, 1])).mean()
    assert 0.94 < covered < 0.985
    gap = (draws[:, 0] - draws[:, 1]) / 200
    half = 1.96 * np.sqrt((draws.sum(axis=1) / 200 - gap**2) / 200)
    assert (abs(gap - (first - second)) <= half).mean() < covered


def counts(predictions: Tensor) -> Tensor:
    """(L, L) of (L, N) whether right."""
    return predictions.long() @ predictions.long().T


def test_what_a_record_holds_of_the_depth() -> None:
    right = torch.zeros(3, 100, dtype=torch.bool)
    right[0, :80] = right[1, 4:99] = right[2, :97] = True
    told = measured_depth(counts(right), 100, 0.05, 0.04)
    low, high = paired_interval(4, 2, 100)
    assert told == {
        "epsilon": 0.05,
        "layer": 2,
        "best": 3,
        "behind": pytest.approx(0.02),
        "low": low,
        "high": high,
        "absolute_epsilon": 0.04,
        "absolute_layer": 3,
    }
    assert measured_depth(counts(right), 100, 0.01, independent=False) == {
        "epsilon": 0.01,
        "layer": 3,
        "best": 3,
        "behind": 0.0,
    }
    whole = measured_depth(counts(right), 100, 0.01, 0.01)
    assert (whole["low"], whole["high"]) == (0.0, 0.0), "a layer is behind itself by nothing"
    assert "absolute_layer" not in whole, "0.99 is reached nowhere"


def test_by_the_interval_more_samples_tell_layers_apart() -> None:
    """Layer 1 is right on 5 % fewer: on 100 samples that may be chance, on 10 000 it is not."""
    for times, layer in ((1, 1), (100, 2)):
        right = torch.zeros(2, 100 * times, dtype=torch.bool)
        right[0, : 85 * times] = right[1, 5 * times : 95 * times] = True
        assert measured_depth(counts(right), 100 * times, "interval")["layer"] == layer
        assert measured_depth(counts(right), 100 * times)["layer"] == 2


def test_pairing_tells_apart_what_two_intervals_do_not() -> None:
    """One layer is right wherever the other is, and on 2 % more: sure of 1000 samples, though each accuracy alone is
    uncertain by 2.5 %."""
    right = torch.zeros(2, 1000, dtype=torch.bool)
    right[0, :800] = right[1, :820] = True
    told = measured_depth(counts(right), 1000, "interval")
    assert told["layer"] == 2
    low, _ = paired_interval(20, 0, 1000)
    assert low > 0
    assert 1.96 * math.sqrt(0.8 * 0.2 / 1000) > 0.02
