"""Accuracy for every mean exit layer: what thresholds do to the samples of a table, or of an evaluation.

Letters: L layers, N samples, K thresholds, T points, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.exits.policies import rising, threshold_grid
from layersim.exits.table import ExitTable
from layersim.metrics.readout import ReadoutMetric, counts, targets_of
from layersim.outputs import LayerOutput
from layersim.precision import widened

BAND = 0.95
"""The probability of the intervals."""
POINTS = 41
"""So many points of a curve are kept, at most."""


def exit_counts(scores: Tensor, predictions: Tensor, targets: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """How many samples leave at each layer, and how many of these are right there: (K, L) integers each.

    A sample leaves as `exit_layer` says: at the first layer whose score reaches the threshold, else at the last.

    Args:
        scores: (L, N) a policy's, such as a readout's confidences.
        predictions: (L, N) a readout's.
        targets: (N,) classes.
        thresholds: (K,) ascending, float32 numbers; with ∞ nobody leaves early.
    """
    surest = torch.where(scores.isnan(), -inf, widened(scores)).cummax(dim=0).values
    reached = torch.searchsorted(thresholds.to(surest), surest, right=True)
    # the number of thresholds reached before a layer, and at it: those in between let the sample go there
    before = torch.cat([torch.zeros_like(reached[:1]), reached[:-1]])
    after = torch.cat([reached[:-1], torch.full_like(reached[:1], len(thresholds))])

    def count(samples: Tensor) -> Tensor:
        edges = samples.new_zeros(len(scores), len(thresholds) + 1)
        return edges.scatter_add(1, before, samples).scatter_add(1, after, -samples).cumsum(dim=1)[:, :-1].T

    right = (predictions == targets).long()
    return count(torch.ones_like(right)), count(right)


def along_exits(exits: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Mean exit layer, counted from 1, and accuracy, (K,) float64 each, of what `exit_counts` gives."""
    layers = torch.arange(1, exits.shape[1] + 1, dtype=torch.float64, device=exits.device)
    samples = exits.sum(dim=1)
    return exits.double() @ layers / samples, correct.sum(dim=1).double() / samples


class ExitCounts(ReadoutMetric):
    """Counts samples and right answers by threshold of the confidence and exit layer, for the `thresholds`.

    These are K = 1001, as `layersim exits` tries them, from 0, with which all leave at layer 1, to 1, and ∞. `compute`
    gives `(mean exit layer (K,), accuracy (K,))`, the first rising from 1 to L. Integer states, so that any split over
    batches and processes gives the same numbers.
    """

    thresholds: Tensor
    exits: Tensor
    correct: Tensor

    def __init__(self, num_layers: int) -> None:
        tried = torch.tensor([*threshold_grid(0.0, 1.0), inf], dtype=torch.float32)
        super().__init__(exits=counts(len(tried), num_layers), correct=counts(len(tried), num_layers))
        self.register_buffer("thresholds", tried, persistent=False)

    def update(self, output: LayerOutput) -> None:
        readout = output.readout
        exits, correct = exit_counts(readout.confidences, readout.predictions, targets_of(output), self.thresholds)
        self.add(exits=exits, correct=correct)

    def compute(self) -> tuple[Tensor, Tensor]:
        return along_exits(self.exits, self.correct)


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
    table: ExitTable, thresholds: Sequence[float], *, points: int = POINTS, resamples: int = 1000, seed: int = 0
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
    thresholds = rising(thresholds)
    if points < 2 or resamples < 1:
        raise UserError(
            f"Expected 2 points and 1 resample, or more, for a curve of exits, but got {points} and {resamples}."
        )
    num_samples = len(table.targets)
    if num_samples == 0:
        raise UserError("Expected samples to draw a curve of exits from, but got none. Change the data.")
    tried = torch.tensor([*thresholds, inf], dtype=torch.float64)
    exits, correct = exit_counts(table.scores, table.predictions, table.targets, tried)
    means, accuracies = along_exits(exits, correct)
    chosen = spread(means, points)
    cells = torch.cat([exits - correct, correct], dim=1).numpy()
    draw = np.random.default_rng(seed)
    intervals = []
    for one in chosen:
        resampled = torch.from_numpy(draw.multinomial(num_samples, cells[one] / num_samples, size=resamples))
        wrong, right = resampled.chunk(2, dim=1)
        drawn = np.stack(along_exits(wrong + right, right))
        intervals.append(np.quantile(drawn, [(1 - BAND) / 2, (1 + BAND) / 2], axis=1).T.tolist())
    return ExitCurve(
        threshold=[None if one == len(thresholds) else thresholds[one] for one in chosen],
        mean_exit_layer=means[chosen].tolist(),
        accuracy=accuracies[chosen].tolist(),
        mean_exit_layer_interval=[of_mean for of_mean, _ in intervals],
        accuracy_interval=[of_accuracy for _, of_accuracy in intervals],
    )


def spread(means: Tensor, points: int = POINTS) -> list[int]:
    """Places in rising mean exit layers (K,), ascending, that lie nearest to so many evenly spaced ones; of equals the
    last, the most cautious threshold."""
    cautious = means.flip(0).cpu()
    wanted = torch.linspace(cautious[-1].item(), cautious[0].item(), points, dtype=torch.float64)
    nearest = (cautious - wanted.unsqueeze(1)).abs().argmin(dim=1)
    return sorted({len(means) - 1 - place for place in nearest.tolist()})


def exit_curve_area(mean_exit_layer: Tensor, accuracy: Tensor) -> float:
    """The mean of the accuracy over all mean exit layers: ∫ accuracy(m) dm / (L − 1), m from 1 to L.

    Between two points the accuracy is linear in m: who flips a coin for each sample between the two thresholds gets
    just that. 1 means every sample right even where all leave at layer 1; with one layer it is that layer's accuracy.

    Args:
        mean_exit_layer: (K,) rising, from 1 to L.
        accuracy: (K,).
    """
    width = mean_exit_layer[-1] - mean_exit_layer[0]
    if width == 0:
        return accuracy[-1].item()
    return (torch.trapezoid(accuracy, mean_exit_layer) / width).item()


def accuracy_at(mean_exit_layer: Tensor, accuracy: Tensor, mean: float) -> float:
    """The accuracy where the mean exit layer is `mean`, linear between points as in `exit_curve_area`.

    Args:
        mean_exit_layer: (K,) rising, from 1 to L.
        accuracy: (K,).
        mean: 1 … L.

    Raises:
        UserError: the mean is out of range.
    """
    least, greatest = mean_exit_layer[0].item(), mean_exit_layer[-1].item()
    if not least <= mean <= greatest:
        raise UserError(f"Expected a mean exit layer of {least:g} … {greatest:g}, but got {mean:g}.")
    return float(np.interp(mean, mean_exit_layer.cpu().numpy(), accuracy.cpu().numpy()))
