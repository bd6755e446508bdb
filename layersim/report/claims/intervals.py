"""A number with its interval: over runs that differ in their seed, or, of a single run, over its samples.

Letters: R runs, K numbers of a run, of which the greatest is judged (the drops between its layers), N samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats  # type: ignore[import-untyped]

Numbers = NDArray[np.float64]

CONFIDENCE = 0.95
ALIKE = "all seeds gave the same number, whose spread is unknown"


class NotMeasured(Exception):
    """A run does not tell what a claim asks; the message says what is missing and what would measure it."""


@dataclass(frozen=True)
class Measured:
    """K numbers of one run and, where its samples give one, the 95 % interval of each."""

    values: Numbers
    ends: Numbers | None = None
    """(2, K), lower and upper."""

    def __sub__(self, other: "Measured") -> "Measured":
        """The difference, with the interval of the two together: each end is as far off as the root of the two summed
        squares (Zou and Donner 2008; of two shares Newcombe's 1998). It takes the two as independent; two models
        measured on the same samples mostly agree, and the interval is then too wide."""
        values = self.values - other.values
        if self.ends is None or other.ends is None:
            return Measured(values)
        below, above = np.hypot(self.ends - self.values, other.ends[::-1] - other.values)
        return Measured(values, np.stack([values - below, values + above]))

    def __getitem__(self, chosen: Any) -> "Measured":
        return Measured(self.values[chosen], None if self.ends is None else self.ends[:, *np.index_exp[chosen]])


@dataclass(frozen=True)
class Estimate:
    """The greatest of K numbers, its interval where there is one, and what that is taken over."""

    value: float
    low: float | None
    high: float | None
    basis: str
    """Such as `3 seeds`, `3 seeds, paired`, `4 and 3 seeds`, `1 run each`."""
    why: str = ""
    """Why there is no interval, or what is to be known of it."""


def normal_quantile(alternatives: int = 1) -> float:
    """The two-sided quantile at 95 %, Bonferroni's for one among so many."""
    return float(stats.norm.ppf(1 - (1 - CONFIDENCE) / (2 * alternatives)))


def shares(values: ArrayLike, samples: int | None) -> Measured:
    """(K,) shares of N samples, or means of numbers in 0 … 1, with Wilson's interval (1927), too wide for the latter;
    without where samples are not independent (tokens of one text). scipy has it of whole counts alone, which such means
    are not."""
    share = np.asarray(values, dtype=np.float64)
    if samples == 0 or (np.abs(share - 0.5) > 0.5 + 1e-6).any():
        raise NotMeasured("what is told as shares does not lie in 0 … 1, or is of no sample")
    if samples is None:
        return Measured(share)
    z = normal_quantile()
    centre = (share + z**2 / (2 * samples)) / (1 + z**2 / samples)
    half = z * np.sqrt(share * (1 - share) / samples + (z / (2 * samples)) ** 2) / (1 + z**2 / samples)
    return Measured(share, np.stack([centre - half, centre + half]))


def estimate(runs: Sequence[Measured], *, paired: bool = False) -> Estimate:
    """The greatest of the K means over R runs.

    Its interval is [max (mean − t' s / √R), max (mean + t s / √R)] over K: with t, each number's own Student's quantile
    at 95 %, all K stay below the upper end unless the greatest passes its own; the lower end, where any of K could have
    been the greatest by chance, has Bonferroni's t', at 1 − 0.05 / K. A number on which all runs agree to the last
    digit, and all of a single run, have the interval of the samples, its lower end widened as a normal one's would be.
    """
    values = np.stack([run.values for run in runs])
    if len(runs) > 1:
        basis = f"{len(runs)} seeds{', paired' if paired else ''}"
        return _greatest(values.mean(axis=0), stats.sem(values), len(runs) - 1, _alike(values), runs, basis)
    one, basis = np.ones(values.shape[1]), f"1 run{' each' if paired else ''}"
    found = _greatest(values[0], one, 1, one > 0, runs, basis)
    if found.low is None:
        return replace(found, why="no interval from one run")
    exact = runs[0].ends is not None and bool((runs[0].ends[0] == runs[0].ends[1]).all())
    return found if exact else replace(found, why="over the samples of one run; another seed may differ")


def difference(first: Mapping[str, Measured], second: Mapping[str, Measured]) -> Estimate:
    """The greatest of the K differences, first less second, of runs by their seed.

    Paired by the seeds that are in both, since runs of one seed share what it draws, unless that would leave out more
    than half of either side; then, with two runs or more of each, by Welch's interval; else of one run each, over
    their samples. What is left out is told.
    """
    common = sorted(first.keys() & second.keys())
    fewer = min(len(first), len(second))
    if fewer > 1 and (len(common) < 2 or 2 * len(common) < fewer):
        return _welch(list(first.values()), list(second.values()))
    pairs = [(seed, seed) for seed in common] or [(min(first), min(second))]
    found = estimate([first[one] - second[other] for one, other in pairs], paired=True)
    alone = len(first) + len(second) - 2 * len(pairs)
    if not alone:
        return found
    left_out = (
        "1 run without a partner of its seed is" if alone == 1 else f"{alone} runs without a partner of their seed are"
    )
    return replace(found, why="; ".join(filter(None, [found.why, f"{left_out} left out"])))


def _welch(first: Sequence[Measured], second: Sequence[Measured]) -> Estimate:
    one, other = (np.stack([run.values for run in side]) for side in (first, second))
    alike = _alike(one) & _alike(other)
    one_square, other_square = (np.where(alike, 1.0, stats.sem(side) ** 2) for side in (one, other))
    total = one_square + other_square
    freedom = total**2 / (one_square**2 / (len(one) - 1) + other_square**2 / (len(other) - 1))
    pairs = [mine - theirs for mine in first for theirs in second]
    basis = f"{len(first)} and {len(second)} seeds"
    return _greatest(one.mean(axis=0) - other.mean(axis=0), np.sqrt(total), freedom, alike, pairs, basis)


def _greatest(
    means: Numbers,
    error: Numbers,
    freedom: ArrayLike,
    alike: NDArray[np.bool_],
    runs: Sequence[Measured],
    basis: str,
) -> Estimate:
    """The greatest of K means, each with Student's interval from its standard error; where runs are alike, with the
    hull of their own intervals."""
    low = means - stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * len(means)), freedom) * error
    high = means + stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * error
    if alike.any():
        ends = [run.ends for run in runs if run.ends is not None]
        if len(ends) < len(runs):
            return Estimate(float(means.max()), None, None, basis, ALIKE)
        wider = normal_quantile(len(means)) / normal_quantile()
        below = [run.values - wider * (run.values - low) for run, (low, _) in zip(runs, ends, strict=True)]
        low, high = np.where(alike, np.min(below, axis=0), low), np.where(alike, np.max(ends, axis=0)[1], high)
    return Estimate(float(means.max()), float(low.max()), float(high.max()), basis)


def _alike(values: Numbers) -> NDArray[np.bool_]:
    """(K,), whether all R runs gave the same number; by a digit in the last place those that agree may differ."""
    spread: Numbers = np.ptp(values, axis=0)
    return spread <= 4 * np.finfo(np.float64).eps * np.abs(values).max(axis=0)
