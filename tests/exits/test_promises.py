"""Promises against scipy's distributions, hand-worked bets, and the probability with which they may fail."""

from math import log, sqrt

import pytest
import torch
from scipy.stats import beta, binom

from layersim.exits.promises import Bet, Counted, Expected, Promise


def losses_of(ones: int, n: int) -> torch.Tensor:
    return (torch.arange(n) < ones).double()


@pytest.mark.parametrize("n", [1, 10, 400, 50_000])
@pytest.mark.parametrize("target", [0.001, 0.03, 0.5, 0.97])
def test_a_count_is_kept_where_the_binomial_tail_is_small(n: int, target: float) -> None:
    for ones in sorted({0, 1, n // 100, round(n * target), n - 1, n}):
        tail = binom.cdf(ones, n, target)
        for delta in (tail * (1 + 1e-8), tail * (1 - 1e-8)):
            if 0 < delta < 1:
                assert Counted(target, delta).keeps(losses_of(ones, n)) == (delta > tail)


@pytest.mark.parametrize(("ones", "n"), [(0, 20), (1, 20), (7, 300), (300, 50_000), (19, 20)])
@pytest.mark.parametrize("delta", [0.01, 0.1])
def test_its_bound_is_that_of_clopper_and_pearson(ones: int, n: int, delta: float) -> None:
    bound = Counted(0.5, delta).bound(losses_of(ones, n))
    assert bound == pytest.approx(beta.ppf(1 - delta, ones + 1, n - ones), rel=1e-8)
    assert binom.cdf(ones, n, bound) == pytest.approx(delta, rel=1e-8)


def test_all_wrong_bounds_nothing() -> None:
    assert Counted(0.5, 0.05).bound(losses_of(20, 20)) == 1
    assert Bet(0.1, 0.05).bound(torch.ones(500, dtype=torch.float64)) == 1
    assert Bet(0.1, 0.05).p_value(torch.ones(500, dtype=torch.float64)) == 1


def test_bets_by_hand() -> None:
    """n = 3, target 0.9, δ = 0.5: each bet looks at the losses before it, and the greatest capital is what counts."""
    bets = [sqrt(2 * log(2) / 3 * place / (0.9 + before)) for place, before in [(1, 0.0), (2, 1.0), (3, 1.25)]]
    assert max(bets) == bets[2] > 0.75 > bets[0]
    capital = [1 + bets[0] * (0.9 + 1)]
    capital.append(capital[-1] * (1 + bets[1] * (0.9 - 0.5)))
    capital.append(capital[-1] * (1 + 0.75 * (0.9 - 1)))
    losses = torch.tensor([-1, 0.5, 1], dtype=torch.float64)
    assert Bet(0.9, 0.5).p_value(losses) == pytest.approx(1 / max(capital), rel=1e-12)
    assert max(capital) == capital[1]


def differences(draw: torch.Generator, n: int, worse: float, better: float) -> torch.Tensor:
    """n losses, 1 with probability `worse`, −1 with probability `better`, else 0."""
    drawn = torch.rand(n, generator=draw, dtype=torch.float64)
    return (drawn < worse).double() - (drawn > 1 - better).double()


@pytest.mark.parametrize(("worse", "better"), [(0.02, 0.0), (0.05, 0.03), (0.3, 0.28)])
@pytest.mark.parametrize("n", [200, 1000])
def test_a_mean_at_the_target_is_seldom_rejected(worse: float, better: float, n: int) -> None:
    """And the test is worth its name: with a quarter of the worse, on 4n samples, it rejects far oftener."""
    draw, delta, repeats = torch.Generator().manual_seed(n), 0.1, 1000
    sampling_error = sqrt(delta * (1 - delta) / repeats)
    rejected = [Bet(0.02, delta).p_value(differences(draw, n, worse, better)) <= delta for _ in range(repeats)]
    assert sum(rejected) / repeats <= delta + 3 * sampling_error
    found = [Bet(0.02, delta).p_value(differences(draw, 4 * n, worse / 4, better)) <= delta for _ in range(100)]
    assert sum(found) / 100 > delta + 6 * sampling_error


@pytest.mark.parametrize("worse", [0.0, 0.01, 0.04, 0.1])
def test_bound_and_test_agree(worse: float) -> None:
    draw = torch.Generator().manual_seed(3)
    for target in (0.02, 0.05, 0.2):
        losses = differences(draw, 800, worse, 0.02)
        bound = Bet(target, 0.05).bound(losses)
        assert bound > losses.mean()
        assert (bound <= target) == (Bet(target, 0.05).p_value(losses) <= 0.05)


def test_betting_sees_that_most_differences_are_zero() -> None:
    """1 % worse, 1 % better: Hoeffding's bound on the range [−1, 1] is more than four times as far off."""
    losses = differences(torch.Generator().manual_seed(0), 2000, 0.01, 0.01)
    hoeffding = 2 * sqrt(log(20) / (2 * 2000))
    assert Bet(0.02, 0.05).bound(losses) - losses.mean().item() < hoeffding / 4


def test_an_improvement_is_bounded_below_zero() -> None:
    losses = differences(torch.Generator().manual_seed(0), 4000, 0.01, 0.08)
    assert losses.mean() < Bet(0.01, 0.05).bound(losses) < -0.05


@pytest.mark.parametrize("kind", [Expected, Counted, Bet])
@pytest.mark.parametrize("target", [0.003, 0.01, 0.07, 0.3, 0.6])
@pytest.mark.parametrize("delta", [0.01, 0.05, 0.2])
def test_samples_needed_are_needed_and_enough(kind: type[Promise], target: float, delta: float) -> None:
    promise = kind(target, delta)
    needed = promise.samples_needed()
    for n in (needed, needed + 1, 2 * needed, 5 * needed):
        assert promise.keeps(torch.zeros(n, dtype=torch.float64))
    if needed > 1:
        assert not promise.keeps(torch.zeros(needed - 1, dtype=torch.float64))
    for n in (1, needed):  # the least target that so many allow, which an error tells, is their bound
        least = promise.bound(torch.zeros(n, dtype=torch.float64))
        assert least <= target * (1 + 1e-12) or n < needed
        if least < 0.99:
            assert kind(least * (1 + 1e-9), delta).keeps(torch.zeros(n, dtype=torch.float64))
            assert not kind(least * (1 - 1e-9), delta).keeps(torch.zeros(n, dtype=torch.float64))
