"""Thresholds that keep their promise, and the naive choice, which does not."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch

from layersim.errors import UserError
from layersim.exits import (
    Calibration,
    Confidence,
    ExitTable,
    Method,
    Risk,
    best_within,
    calibrate,
    calibrate_together,
    calibration,
    exit_layer,
)
from layersim.exits.promises import Bet
from layersim.exits.table import at_exits, drops
from tests.exits.readouts import THRESHOLDS, pool, table_of

TARGETS: dict[Risk, float] = {"error": 0.02, "disagreement": 0.05, "loss": 0.02}
SPLITS = 200


def risks_at(table: ExitTable, risk: Risk, thresholds: Iterable[float | None]) -> list[float]:
    costs = drops(table, risk)
    return [at_exits(costs, exit_layer(table.scores, threshold)).mean().item() for threshold in thresholds]


@cache
def pool_risks(risk: Risk) -> dict[float | None, float]:
    tried = [None, *THRESHOLDS]
    return dict(zip(tried, risks_at(pool(), risk, tried), strict=True))


def naive(table: ExitTable, risk: Risk, target: float) -> float | None:
    """The least threshold whose risk on these very samples is at most the target."""
    costs = drops(table, risk)
    kept = (t for t in THRESHOLDS if at_exits(costs, exit_layer(table.scores, t)).mean().item() <= target)
    return next(kept, None)


@cache
def splits(size: int) -> list[ExitTable]:
    """`size` samples of the pool drawn at random, 200 times."""
    total = len(pool().targets)
    orders = (torch.randperm(total, generator=torch.Generator().manual_seed(seed)) for seed in range(SPLITS))
    return [pool().select(order[:size]) for order in orders]


def realised(risk: Risk, size: int, choose: Callable[[ExitTable], float | None]) -> torch.Tensor:
    """What the threshold chosen on each split costs the samples left out of it, the rest of the pool, (200,)."""
    total, costs = len(pool().targets), []
    for table in splits(size):
        threshold = choose(table)
        rest = total * pool_risks(risk)[threshold] - size * risks_at(table, risk, [threshold])[0]
        costs.append(rest / (total - size))
    return torch.tensor(costs, dtype=torch.float64)


@pytest.mark.parametrize(
    ("method", "risk"),
    [("ltt", "error"), ("ltt", "disagreement"), ("ltt", "loss"), ("ucb", "disagreement")],  # the rest agree, see below
)
def test_the_target_is_exceeded_no_more_often_than_promised(method: Method, risk: Risk) -> None:
    """On 1000 samples with confidence 0.9; the rest of the pool is so large that its own sampling hardly counts."""
    target, delta, gains = TARGETS[risk], 0.1, []

    def choose(table: ExitTable) -> float | None:
        chosen = calibrate(
            table, Confidence(), THRESHOLDS, target=target, risk=risk, method=method, confidence=1 - delta
        )
        gains.append(chosen.layer_gain)
        return chosen.threshold

    exceeded = (realised(risk, 1000, choose) > target).double().mean()
    assert exceeded <= delta + 3 * sqrt(delta * (1 - delta) / SPLITS)
    assert sum(gains) / SPLITS > 1.4  # the promise is not kept by never leaving


@pytest.mark.parametrize("risk", TARGETS)
def test_a_naive_choice_breaks_the_promise(risk: Risk) -> None:
    exceeded = (realised(risk, 1000, lambda table: naive(table, risk, TARGETS[risk])) > TARGETS[risk]).double().mean()
    assert exceeded > 0.35


@pytest.mark.parametrize("risk", TARGETS)
def test_conformal_risk_control_keeps_the_mean(risk: Risk) -> None:
    """On 100 samples, where the naive choice's mean lies clearly above the target."""

    def choose(table: ExitTable) -> float | None:
        return calibrate(table, Confidence(), THRESHOLDS, target=0.05, risk=risk, method="crc").threshold

    kept = realised(risk, 100, choose)
    assert kept.mean() <= 0.05 + 3 * kept.std() / sqrt(SPLITS)
    assert kept.mean() > 0.025
    broken = realised(risk, 100, lambda table: naive(table, risk, 0.05))
    assert broken.mean() > 0.05 + 3 * broken.std() / sqrt(SPLITS)


def stairs(num_samples: int, wrong: list[int]) -> ExitTable:
    """Two layers, all right at the second; at the first sample i is the surer the smaller i, and `wrong` are wrong."""
    logits = torch.zeros(2, num_samples, 2)
    logits[0, :, 0] = torch.linspace(9, 1, num_samples)
    logits[1, :, 0] = 9
    logits[0, wrong] = logits[0, wrong].flip(-1)
    return table_of(logits, torch.zeros(num_samples, dtype=torch.int64))


@pytest.mark.parametrize("risk", ["error", "disagreement"])
def test_conformal_risk_control_by_hand(risk: Risk) -> None:
    """n = 19, target 0.15: (wrong + 1) / 20 ≤ 0.15 allows two wrong, so samples leave down to just above the third."""
    table = stairs(19, wrong=[3, 7, 12, 15])
    thresholds = table.scores[0].flip(0).tolist()
    chosen = calibrate(table, Confidence(), thresholds, target=0.15, risk=risk, method="crc")
    assert chosen.threshold == table.scores[0, 11].item()
    assert chosen.exits == (12, 7)
    assert chosen.bound == pytest.approx(3 / 20)
    assert chosen.observed_risk == pytest.approx(2 / 19)
    assert chosen.confidence is None
    assert chosen.accuracy == pytest.approx(17 / 19)


@pytest.mark.parametrize(("target", "allowed"), [(0.03, 0), (0.05, 1), (0.065, 2)])
def test_counting_by_hand(target: float, allowed: int) -> None:
    """n = 100, δ = 0.05: P(Binomial(100, 0.03) ≤ 0) = 0.0476, (0.05, ≤ 1) = 0.037, (0.065, ≤ 2) = 0.039."""
    wrong = [10, 20, 30, 40]
    table = stairs(100, wrong)
    thresholds = table.scores[0].flip(0).tolist()
    chosen = calibrate(table, Confidence(), thresholds, target=target, risk="disagreement", method="ltt")
    assert chosen.exits[0] == wrong[allowed]
    assert chosen.observed_risk == pytest.approx(allowed / 100)
    assert chosen.observed_risk < chosen.bound <= target


def test_conformal_risk_control_gives_no_credit_and_the_others_do() -> None:
    """Every second sample is right at the first layer only: leaving early prevents mistakes, and makes a few."""
    n = 500
    logits = torch.zeros(2, n, 2)
    logits[0, :, 0] = torch.linspace(9, 1, n)
    logits[1, :, 0] = 9
    logits[1, ::2] = logits[1, ::2].flip(-1)  # wrong at the last layer
    logits[0, 101:300:20] = logits[0, 101:300:20].flip(-1)  # wrong at the first
    table = table_of(logits, torch.zeros(n, dtype=torch.int64))
    thresholds = table.scores[0].flip(0).unique().tolist()
    careful = calibrate(table, Confidence(), thresholds, target=0.01, method="crc")
    assert careful.exits[0] == 181  # four wrong, and with the fifth (5 + 1) / 501 > 0.01
    assert careful.observed_risk == pytest.approx((4 - 91) / n)
    bold = calibrate(table, Confidence(), thresholds, target=0.01, method="ucb")
    assert bold.exits[0] == n
    assert bold.bound < 0


def test_a_stricter_promise_never_saves_more() -> None:
    table = pool().select(torch.arange(1000))
    for method in ("crc", "ltt", "ucb"):
        costs = [
            calibrate(table, Confidence(), THRESHOLDS, target=target, risk="disagreement", method=method)
            for target in (0.01, 0.02, 0.05, 0.1, 0.2)
        ]
        assert [one.mean_exit_layer for one in costs] == sorted((one.mean_exit_layer for one in costs), reverse=True)
        assert costs[0].mean_exit_layer > costs[-1].mean_exit_layer
        assert all(one.bound <= one.target for one in costs)
    sure = [
        calibrate(table, Confidence(), THRESHOLDS, target=0.05, risk="disagreement", confidence=c).threshold
        for c in (0.5, 0.9, 0.999)
    ]
    assert sure == sorted(sure)
    assert sure[0] < sure[-1]


@pytest.mark.parametrize("risk", ["error", "loss"])
def test_two_ways_to_the_same_threshold(risk: Risk) -> None:
    table = pool().select(torch.arange(1000))
    one, other = (
        calibrate(table, Confidence(), THRESHOLDS, target=0.02, risk=risk, method=method) for method in ("ltt", "ucb")
    )
    assert (one.threshold, one.bound) == (other.threshold, other.bound)


def test_a_sorted_file_does_not_fool_the_bets() -> None:
    """All samples that lose stand last: bets in that order would win before they see one."""
    table = stairs(1000, wrong=list(range(600, 1000)))
    leave_all = table.scores[0].amin().item()
    losses = at_exits(drops(table, "error"), exit_layer(table.scores, leave_all))
    assert losses.mean() == 0.4
    assert Bet(0.1, 0.05).p_value(losses) < 0.05
    chosen = calibrate(table, Confidence(), table.scores[0].flip(0).unique().tolist(), target=0.1, method="ucb")
    assert 0.03 < chosen.observed_risk < 0.1


def test_where_nothing_can_be_promised_all_layers_are_gone_through() -> None:
    table = stairs(200, wrong=list(range(200)))
    chosen = calibrate(table, Confidence(), [0.6], target=0.05)
    assert chosen.threshold is None
    assert (chosen.exits, chosen.layer_gain, chosen.observed_risk) == ((0, 200), 1, 0)
    assert chosen.explain().startswith("No threshold of the policy confidence can be promised to keep the error rate")
    assert "every sample goes through all layers" in chosen.explain()


@pytest.mark.parametrize(
    ("method", "risk", "needed", "least"),
    [("crc", "error", 99, "0.0101"), ("ltt", "disagreement", 299, "0.01"), ("ucb", "disagreement", 401, "0.01")],
)
def test_too_few_samples_are_told(method: Method, risk: Risk, needed: int, least: str) -> None:
    """Without one error: 1 / (n + 1) ≤ 0.01; 0.99^n ≤ 0.05; 1.0075^n ≥ 20."""

    def choose(num_samples: int) -> Calibration:
        table = stairs(num_samples, wrong=[])
        return calibrate(table, Confidence(), [0.75], target=0.01, risk=risk, method=method)

    assert choose(needed).threshold == 0.75
    with pytest.raises(UserError, match=rf"at least {needed} samples to promise a risk \({risk}\) .*above {least}"):
        choose(needed - 1)
    with pytest.raises(UserError, match="but got 0"):
        choose(0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"target": 0.0}, "risk target above 0 and below 1, but got 0"),
        ({"target": 1.0}, "risk target above 0 and below 1, but got 1"),
        ({"target": float("nan")}, "risk target above 0 and below 1, but got nan"),
        ({"confidence": 1.0}, "confidence above 0 and below 1, but got 1"),
        ({"confidence": -0.5}, "confidence above 0 and below 1"),
        ({"method": "guess"}, "method: expected one of crc, ltt, ucb, got 'guess'"),
        ({"risk": "regret"}, "risk: expected one of error, disagreement, loss, got 'regret'"),
        ({"thresholds": [0.5, 0.4]}, "each above the one before"),
        ({"thresholds": []}, "Expected thresholds to choose from, each above the one before, but got none"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], told: str) -> None:
    given = {"target": 0.05, "thresholds": THRESHOLDS, **options}
    with pytest.raises(UserError, match=told):
        calibrate(stairs(500, []), Confidence(), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_thresholds_and_targets_may_be_an_array(kind: Any) -> None:
    table, few = pool().select(torch.arange(1000)), [0.25, 0.5, 0.75]
    expected = calibrate_together(table, Confidence(), few, targets=[0.125, 0.25])
    assert calibrate_together(table, Confidence(), kind(few), targets=kind([0.125, 0.25])) == expected
    assert best_within(table, Confidence(), kind(few), 0.75) == best_within(table, Confidence(), few, 0.75)
    with pytest.raises(UserError, match=r"each above the one before, but got 0\.5, 0\.25"):
        calibrate(table, Confidence(), kind([0.5, 0.25]), target=0.125)


def test_what_is_explained() -> None:
    chosen = calibrate(pool().select(torch.arange(1000)), Confidence(), THRESHOLDS, target=0.02)
    text = chosen.explain()
    assert f"leaves at the first layer where confidence ≥ {chosen.threshold:.9g}" in text
    assert float(f"{chosen.threshold:.9g}") == pytest.approx(chosen.threshold, rel=1e-8)
    assert "With probability 0.95 over the draw of these n = 1000 samples" in text
    assert f"at most 0.02 on new samples; the upper bound at this threshold is {chosen.bound:.4g}" in text
    average = calibrate(pool().select(torch.arange(1000)), Confidence(), THRESHOLDS, target=0.02, method="crc")
    assert "averages at most 0.02 on new samples; for this very set it may be more" in average.explain()


def test_the_best_accuracy_within_a_budget() -> None:
    """Against trying every threshold; and half the layers are not the cheapest choice."""
    table = pool().select(torch.arange(2000))
    chosen = best_within(table, Confidence(), THRESHOLDS, 0.5)
    right = (table.predictions == table.targets).double()
    every = [
        (exits.double().mean().item() + 1, at_exits(right, exits).mean().item())
        for exits in (exit_layer(table.scores, threshold) for threshold in THRESHOLDS)
    ]
    assert chosen.accuracy == max(accuracy for layer, accuracy in every if layer <= 3)
    assert 2.5 < chosen.mean_exit_layer <= 3
    assert chosen.accuracy < best_within(table, Confidence(), THRESHOLDS, 0.8).accuracy


def test_of_equals_the_cheapest_is_taken() -> None:
    table = stairs(50, wrong=[])
    assert best_within(table, Confidence(), table.scores[0].flip(0).unique().tolist(), 1.0).exits == (50, 0)


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        (0.0, "budget above 0 and at most 1"),
        (1.5, "but got 1.5"),
        (0.6, r"leaves within 0\.6 of the layers on average; the least is 0\.75"),
    ],
)
def test_budgets_out_of_reach_are_refused(budget: float, told: str) -> None:
    table = stairs(50, wrong=[])
    with pytest.raises(UserError, match=told):
        best_within(table, Confidence(), [table.scores[0].sort().values[25].item()], budget)


TOGETHER = (0.03, 0.06, 0.12)


def test_several_promises_hold_together() -> None:
    """How often any of three targets is exceeded on 40 splits, with confidence 0.8; the control chooses naively."""
    delta, broken, naively = 0.2, 0, 0
    real = pool_risks("disagreement")
    for table in splits(1000)[:40]:
        options = {"risk": "disagreement", "confidence": 1 - delta}
        found = calibrate_together(table, Confidence(), THRESHOLDS, targets=TOGETHER, **options)
        cuts = [one.threshold or 1.0 for one in found]
        assert cuts == sorted(set(cuts), reverse=True)
        assert [one.target for one in found] == list(TOGETHER)
        assert all(one.bound <= one.target and one.confidence == 1 - delta for one in found)
        broken += any(real[one.threshold] > one.target for one in found)
        naively += any(real[naive(table, "disagreement", target)] > target for target in TOGETHER)
    assert broken / 40 <= delta + 3 * sqrt(delta * (1 - delta) / 40)
    assert naively / 40 > 0.6


def test_each_of_several_has_its_share_of_the_probability() -> None:
    table = pool().select(torch.arange(1000))
    found = calibrate_together(table, Confidence(), THRESHOLDS, targets=TOGETHER, confidence=0.9)
    for one in found:
        alone = calibrate(table, Confidence(), THRESHOLDS, target=one.target, confidence=1 - 0.1 / 3)
        assert one == replace(alone, confidence=0.9)


def test_one_target_together_is_that_target_alone() -> None:
    table = pool().select(torch.arange(1000))
    alone = calibrate(table, Confidence(), THRESHOLDS, target=0.05)
    assert calibrate_together(table, Confidence(), THRESHOLDS, targets=[0.05]) == [alone]
    means = calibrate_together(table, Confidence(), THRESHOLDS, targets=[0.05, 0.1], method="crc")
    assert means[0] == calibrate(table, Confidence(), THRESHOLDS, target=0.05, method="crc")


def test_a_stricter_targets_threshold_serves_a_laxer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bets are tuned to their target, so that by chance a laxer one may stop earlier."""
    table = pool().select(torch.arange(1000))
    strict, lax = (calibrate(table, Confidence(), THRESHOLDS, target=target) for target in (0.05, 0.1))
    assert (lax.threshold or 0) < (strict.threshold or 0)
    swapped = {0.05: replace(lax, target=0.05), 0.1: replace(strict, target=0.1), 0.2: replace(strict, threshold=None)}
    monkeypatch.setattr(calibration, "calibrate", lambda *_, target, **__: swapped[target])
    first, second, third = calibrate_together(table, Confidence(), THRESHOLDS, targets=[0.05, 0.1, 0.2])
    assert first.threshold == second.threshold == third.threshold == lax.threshold
    assert [one.target for one in (first, second, third)] == [0.05, 0.1, 0.2]


def test_a_threshold_of_zero_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Margins and entropies have 0 in their range: all leave at the first layer, and no threshold is lower."""
    one = calibrate(pool().select(torch.arange(1000)), Confidence(), THRESHOLDS, target=0.5)
    for given, taken in (
        ((0.3, 0.0, None), [0.3, 0.0, 0.0]),
        ((0.0, 0.3, 0.0), [0.0] * 3),
        ((None, 0.0, 0.3), [None, 0.0, 0.0]),
    ):
        found = dict(zip(TOGETHER, given, strict=True))
        monkeypatch.setattr(
            calibration, "calibrate", lambda *_, target, found=found, **__: replace(one, threshold=found[target])
        )
        chosen = calibrate_together(pool(), Confidence(), THRESHOLDS, targets=TOGETHER)
        assert [each.threshold for each in chosen] == taken


@pytest.mark.parametrize("targets", [[], [0.1, 0.05], [0.05, 0.05], [0.05, 1.5], [float("nan"), 0.1]])
def test_targets_that_do_not_rise_are_refused(targets: list[float]) -> None:
    with pytest.raises(UserError, match=r"Expected (risk targets, each above|a risk target above 0 and below 1)"):
        calibrate_together(pool(), Confidence(), THRESHOLDS, targets=targets)
