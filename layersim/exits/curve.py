"""Accuracy for every mean exit layer, with bands: what a policy's thresholds do to the samples of a table.

Letters: L layers, N samples, T points, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from layersim.errors import UserError
from layersim.exits.summary import at_exits
from layersim.exits.sweep import check_thresholds, sweep
from layersim.exits.table import ExitTable

BAND = 0.95
"""The probability of the intervals."""


@dataclass(frozen=True)
class ExitCurve:
    """T thresholds from the least to the most cautious, and what each did to the N samples."""

    threshold: list[float | None]
    """Ascending; the last is None, with which nobody leaves early."""
    mean_exit_layer: list[float]
    """Counted from 1; ascending to L."""
    accuracy: list[float]
    """Of the predictions at the exits."""
    mean_exit_layer_interval: list[list[float]]
    """Low and high of each point: 95 % percentile bootstrap over the samples, at this threshold."""
    accuracy_interval: list[list[float]]
    """Likewise."""


def exit_curve(
    table: ExitTable, thresholds: Sequence[float], *, points: int = 41, resamples: int = 1000, seed: int = 0
) -> ExitCurve:
    """The curve of at most `points` of the thresholds, spread evenly over the mean exit layers.

    It runs from the least threshold, with which most policies let all leave at layer 1, to None; of thresholds that do
    the same the greatest is taken. A description of these samples, and no promise: `calibrate` gives one.

    The intervals are those of Efron's bootstrap (1979), pointwise. Drawing N samples anew, with replacement, changes
    only how many fall into each of the 2 L cells (exit layer, right or wrong), and these counts are multinomial: so the
    cells are drawn, R times a point, which costs the same for any N.

    Args:
        thresholds: ascending, as the policy gives them.
        points: at least 2.
        resamples: at least 1.
        seed: of the resamples.

    Raises:
        UserError: thresholds, points or resamples out of range, or no samples.
    """
    check_thresholds(thresholds)
    if points < 2 or resamples < 1:
        raise UserError(
            f"Expected 2 points and 1 resample, or more, for a curve of exits, but got {points} and {resamples}."
        )
    num_layers, num_samples = table.scores.shape
    if num_samples == 0:
        raise UserError("Expected samples to draw a curve of exits from, but got none. Change the data.")
    right = (table.predictions == table.targets).long()
    tried: list[float | None] = []
    cells: list[NDArray[np.int64]] = []
    for threshold, exits in sweep(table.scores, thresholds):
        cell = exits + num_layers * at_exits(right, exits)
        tried.append(threshold)
        cells.append(torch.bincount(cell, minlength=2 * num_layers).numpy())
    means, accuracies = _measure(np.stack(cells))
    chosen = _spread(means, points)
    draw = np.random.default_rng(seed)
    drawn = [_measure(draw.multinomial(num_samples, cells[one] / num_samples, size=resamples)) for one in chosen]
    return ExitCurve(
        threshold=[tried[one] for one in chosen],
        mean_exit_layer=means[chosen].tolist(),
        accuracy=accuracies[chosen].tolist(),
        mean_exit_layer_interval=[_interval(mean) for mean, _ in drawn],
        accuracy_interval=[_interval(accuracy) for _, accuracy in drawn],
    )


def _measure(cells: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean exit layer and accuracy, (M,) each, of (M, 2 L) counts: wrong at each layer, then right at each."""
    wrong, right = np.split(cells, 2, axis=1)
    layers = np.arange(1, wrong.shape[1] + 1)
    samples = cells.sum(axis=1)
    return (wrong + right) @ layers / samples, right.sum(axis=1) / samples


def _spread(means: NDArray[np.float64], points: int) -> list[int]:
    """Places in descending means, from the last to the first, that lie nearest to evenly spaced ones."""
    wanted = np.linspace(means[-1], means[0], points)
    nearest = np.abs(means - wanted[:, None]).argmin(axis=1)  # the first of equals: the most cautious threshold
    return sorted(set(nearest.tolist()), reverse=True)


def _interval(values: NDArray[np.float64]) -> list[float]:
    low, high = np.quantile(values, [(1 - BAND) / 2, (1 + BAND) / 2]).tolist()
    return [low, high]
