"""Intervals against scipy, a published example, and what chance alone gives."""

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import stats  # type: ignore[import-untyped]

from layersim.report.claims.intervals import ALIKE, Measured, difference, estimate, shares


def of_seeds(values: ArrayLike) -> dict[str, Measured]:
    return {str(seed): Measured(np.atleast_1d(np.float64(value))) for seed, value in enumerate(np.asarray(values))}


def test_intervals_over_seeds_against_scipy() -> None:
    first, second = [0.1, 0.4, 0.35, 0.2], [0.3, 0.1, 0.25, 0.1]
    one = estimate(list(of_seeds(first).values()))
    assert (one.low, one.high) == pytest.approx(stats.ttest_1samp(first, 0).confidence_interval(0.95))
    paired = difference(of_seeds(first), of_seeds(second))
    assert (paired.low, paired.high) == pytest.approx(stats.ttest_rel(first, second).confidence_interval(0.95))
    apart = difference(of_seeds(first), {f"{seed}9": value for seed, value in of_seeds(second[:3]).items()})
    expected = stats.ttest_ind(first, second[:3], equal_var=False).confidence_interval(0.95)
    assert (apart.low, apart.high) == pytest.approx(tuple(expected))
    assert apart.basis == "4 and 3 seeds"


def test_no_run_is_left_out_unless_it_is_told() -> None:
    def some(seeds: list[int]) -> dict[str, Measured]:
        return {str(seed): Measured(np.array([0.5 + 0.01 * seed**2])) for seed in seeds}

    few = difference(some([0, 1, 2, 3, 4]), some([0, 1, 7, 8, 9]))
    assert few.basis == "5 and 5 seeds", "pairs would leave out six of ten runs"
    most = difference(
        some([0, 1, 2]), {seed: Measured(2 * measured.values) for seed, measured in some([1, 2, 3]).items()}
    )
    assert (most.basis, most.why) == ("2 seeds, paired", "2 runs without a partner of their seed are left out")
    one = difference(some([0, 1, 2, 3, 4]), some([4]))
    assert "4 runs without a partner" in one.why


def test_seeds_that_agree_are_no_certainty_unpaired_either() -> None:
    first = {str(seed): shares([0.95, 0.5 + 0.01 * seed], 1000) for seed in range(3)}
    second = {str(seed): shares([0.9, 0.4 + 0.01 * seed], 1000) for seed in range(5, 8)}
    found = difference(first, second)
    assert found.basis == "3 and 3 seeds"
    alone = difference({"0": shares([0.95], 1000)}, {"9": shares([0.9], 1000)})
    only = difference(
        {seed: measured[:1] for seed, measured in first.items()},
        {seed: measured[:1] for seed, measured in second.items()},
    )
    assert only.low == pytest.approx(alone.low), "0.95 three times over has a variance of 1e-32 in floating point"
    assert only.high == pytest.approx(alone.high)
    bare = difference(of_seeds([0.95] * 3), {f"{seed}5": measured for seed, measured in of_seeds([0.9] * 3).items()})
    assert (bare.low, bare.why) == (None, ALIKE)


def test_intervals_over_samples_against_scipy_and_a_published_example() -> None:
    expected = stats.binomtest(56, 70).proportion_ci(0.95, method="wilson")
    share = shares([56 / 70], 70)
    assert share.ends is not None
    assert tuple(share.ends[:, 0]) == pytest.approx((expected.low, expected.high))
    # Newcombe 1998, Statistics in Medicine 17, table II, method 10, 56/70 − 48/80
    found = difference({"0": share}, {"0": shares([48 / 80], 80)})
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert "another seed may differ" in found.why


def test_the_greatest_of_many_is_no_evidence_by_itself() -> None:
    """Where nothing falls, the greatest of 11 noisy drops seems to, unless it is judged as the greatest of 11."""
    rng = np.random.default_rng(0)
    wrong, naive, trials = 0, 0, 2000
    for _ in range(trials):
        drops = rng.normal(size=(5, 11))
        found = estimate([Measured(row) for row in drops])
        assert found.low is not None
        wrong += found.low > 0
        alone = estimate([Measured(row[[drops.mean(axis=0).argmax()]]) for row in drops])
        assert alone.low is not None
        naive += alone.low > 0
    assert wrong / trials < 0.05 < naive / trials


def test_seeds_that_agree_exactly_are_no_certainty() -> None:
    """Their spread is zero by chance: the samples' interval stands in, and where there is none, nothing can be told."""
    same = [shares([0.9], 50) for _ in range(3)]
    found = estimate(same)
    assert same[0].ends is not None
    assert found.low == pytest.approx(same[0].ends[0, 0])
    bare = estimate([Measured(np.array([0.9]))] * 3)
    assert (bare.low, bare.high, bare.why) == (None, None, "all seeds gave the same number, whose spread is unknown")
