"""A number with its interval: over runs that differ in their seed, or, of a single run, over its samples.

Letters: R runs, K numbers of a run, of which the greatest is judged (the drops between its layers), N samples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit  # type: ignore[import-untyped]

Numbers = NDArray[np.float64]

CONFIDENCE = 0.95
ALIKE = "all seeds gave the same number, whose spread is unknown"


@dataclass(frozen=True)
class Reading:
    """K numbers of one run and, where its samples give one, the 95 % interval of each."""

    values: Numbers
    low: Numbers | None = None
    high: Numbers | None = None

    def __sub__(self, other: "Reading") -> "Reading":
        """The difference, with the interval of the two together: each end is as far off as the root of the two summed
        squares (Zou and Donner 2008; of two shares Newcombe's 1998). It takes the two as independent; two models
        measured on the same samples mostly agree, and the interval is then too wide."""
        values = self.values - other.values
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return Reading(values)
        below = np.hypot(self.values - self.low, other.high - other.values)
        above = np.hypot(self.high - self.values, other.values - other.low)
        return Reading(values, values - below, values + above)

    def __getitem__(self, chosen: slice) -> "Reading":
        ends = [None if end is None else end[chosen] for end in (self.low, self.high)]
        return Reading(self.values[chosen], *ends)


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


def shares(values: ArrayLike, samples: int | None) -> Reading:
    """Shares of N samples, or means of numbers in 0 … 1, with Wilson's interval (1927), too wide for the latter.

    Args:
        values: (K,) in 0 … 1.
        samples: N; None where the samples are not independent (tokens of one text), so that no interval follows.
    """
    share = np.asarray(values, dtype=np.float64)
    if samples is None:
        return Reading(share)
    z = float(ndtri((1 + CONFIDENCE) / 2))
    centre = (share + z**2 / (2 * samples)) / (1 + z**2 / samples)
    half = z * np.sqrt(share * (1 - share) / samples + (z / (2 * samples)) ** 2) / (1 + z**2 / samples)
    return Reading(share, centre - half, centre + half)


def estimate(readings: Sequence[Reading], *, paired: bool = False) -> Estimate:
    """The greatest of the K means over R runs.

    Its interval is [max (mean − t' s / √R), max (mean + t s / √R)] over K: with t, each number's own Student's quantile
    at 95 %, all K stay below the upper end unless the greatest passes its own; the lower end, where any of K could have
    been the greatest by chance, has Bonferroni's t', at 1 − 0.05 / K. A number on which all runs agree to the last
    digit, and all of a single run, have the interval of the samples, its lower end widened as a normal one's would be.
    """
    values = np.stack([reading.values for reading in readings])
    runs, count = values.shape
    means = values.mean(axis=0)
    if runs > 1:
        error = values.std(axis=0, ddof=1) / math.sqrt(runs)
        low = means - _student(runs - 1, count) * error
        high = means + _student(runs - 1, 1) * error
        alike = _alike(values)
    else:
        low, high, alike = means.copy(), means.copy(), np.full(count, True)
    basis = f"{runs} seeds{', paired' if paired else ''}" if runs > 1 else "1 run" + (" each" if paired else "")
    if alike.any():
        ends = _over_samples(readings)
        if ends is None:
            why = ALIKE if runs > 1 else "no interval from one run"
            return Estimate(float(means.max()), None, None, basis, why)
        low[alike], high[alike] = ends[0][alike], ends[1][alike]
    exact = bool((high == low).all())
    why = "" if runs > 1 or exact else "over the samples of one run; another seed may differ"
    return Estimate(float(means.max()), float(low.max()), float(high.max()), basis, why)


def difference(first: Mapping[str, Reading], second: Mapping[str, Reading]) -> Estimate:
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
    runs = (
        "1 run without a partner of its seed is" if alone == 1 else f"{alone} runs without a partner of their seed are"
    )
    partners = f"{runs} left out" if alone else ""
    return replace(found, why="; ".join(filter(None, [found.why, partners])))


def _welch(first: Sequence[Reading], second: Sequence[Reading]) -> Estimate:
    sides = [np.stack([reading.values for reading in side]) for side in (first, second)]
    means = sides[0].mean(axis=0) - sides[1].mean(axis=0)
    alike = _alike(sides[0]) & _alike(sides[1])
    variances = [np.where(alike, 1.0, side.var(axis=0, ddof=1) / len(side)) for side in sides]
    total = variances[0] + variances[1]
    parts = (variance**2 / (len(side) - 1) for variance, side in zip(variances, sides, strict=True))
    freedom = total**2 / sum(parts)
    low = means - _student(freedom, len(means)) * np.sqrt(total)
    high = means + _student(freedom, 1) * np.sqrt(total)
    basis = f"{len(first)} and {len(second)} seeds"
    if alike.any():
        ends = _over_samples([one - other for one in first for other in second])
        if ends is None:
            return Estimate(float(means.max()), None, None, basis, ALIKE)
        low[alike], high[alike] = ends[0][alike], ends[1][alike]
    return Estimate(float(means.max()), float(low.max()), float(high.max()), basis)


def _alike(values: Numbers) -> NDArray[np.bool_]:
    """(K,), whether all R runs gave the same number; by a digit in the last place those that agree may differ."""
    spread: Numbers = np.ptp(values, axis=0)
    alike: NDArray[np.bool_] = spread <= 4 * np.finfo(np.float64).eps * np.abs(values).max(axis=0)
    return alike


def _over_samples(readings: Sequence[Reading]) -> tuple[Numbers, Numbers] | None:
    """The hull of the runs' own intervals, the lower end Bonferroni's."""
    ends = [(reading.low, reading.high) for reading in readings]
    lows = [low for low, _ in ends if low is not None]
    highs = [high for _, high in ends if high is not None]
    if len(lows) < len(readings) or len(highs) < len(readings):
        return None
    count = len(readings[0].values)
    wider = float(ndtri(1 - (1 - CONFIDENCE) / (2 * count)) / ndtri((1 + CONFIDENCE) / 2))
    below = [reading.values - wider * (reading.values - low) for reading, low in zip(readings, lows, strict=True)]
    return np.min(below, axis=0), np.max(highs, axis=0)


def _student(freedom: ArrayLike, count: int) -> Numbers:
    """The two-sided quantile, of one among so many."""
    return np.asarray(stdtrit(freedom, 1 - (1 - CONFIDENCE) / (2 * count)), dtype=np.float64)
