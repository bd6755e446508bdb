"""What leaving by confidence would cost and save: accuracy for every mean exit layer.

Letters: L layers, N samples, K thresholds.
"""

from math import inf, log2

import numpy as np
import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.metrics.readout import ReadoutMetric, counts, targets_of
from layersim.outputs import LayerOutput


def _thresholds() -> list[float]:
    even = [step / 32 for step in range(32)]
    closer = 1 - torch.logspace(-5, log2(1e-6), 31, base=2, dtype=torch.float64)[1:]
    return [*even, *closer.float().tolist(), 1.0, inf]


THRESHOLDS: list[float] = _thresholds()
"""64 confidences, ascending: from 0, with which all leave at layer 1, by 1/32; then each 29 % closer to 1 than the one
before, down to a millionth, because trained models crowd there; 1; and ∞, with which nobody leaves early.

All but ∞ are float32 numbers, so that confidences in float32 and in float64 agree on who has reached them."""


def exit_counts(confidences: Tensor, predictions: Tensor, targets: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """How many samples leave at each layer, and how many of these are right there: (K, L) integers each.

    A sample leaves at the first layer whose confidence reaches the threshold (arXiv 2406.14479), else at the last; a
    confidence of NaN reaches none.

    Args:
        confidences: (L, N) a readout's.
        predictions: (L, N) a readout's.
        targets: (N,) classes.
        thresholds: (K,).
    """
    stays = torch.ones(len(thresholds), len(targets), dtype=torch.bool, device=confidences.device)
    right = predictions == targets
    exits, correct = [], []
    for layer, confidence in enumerate(confidences, start=1):
        leaves = stays if layer == len(confidences) else stays & (confidence >= thresholds.unsqueeze(1))
        exits.append(leaves.sum(dim=1))
        correct.append((leaves & right[layer - 1]).sum(dim=1))
        stays = stays & ~leaves
    return torch.stack(exits, dim=1), torch.stack(correct, dim=1)


class ExitCounts(ReadoutMetric):
    """Counts samples and right answers by threshold and exit layer, for the thresholds `THRESHOLDS`.

    `compute` gives `(mean exit layer (K,), accuracy (K,))` in float64, layers counted from 1, the mean exit layer
    rising from 1 to L.
    """

    thresholds: Tensor
    exits: Tensor
    correct: Tensor

    def __init__(self, num_layers: int) -> None:
        zeros = counts(len(THRESHOLDS), num_layers)
        super().__init__(exits=zeros, correct=zeros.clone())
        self.register_buffer("thresholds", torch.tensor(THRESHOLDS), persistent=False)

    def update(self, output: LayerOutput) -> None:
        told = output.readout
        exits, correct = exit_counts(told.confidences, told.predictions, targets_of(output), self.thresholds)
        self.exits += exits
        self.correct += correct

    def compute(self) -> tuple[Tensor, Tensor]:
        layers = torch.arange(1, self.exits.shape[1] + 1, dtype=torch.float64, device=self.exits.device)
        samples = self.exits.sum(dim=1)
        return self.exits.double() @ layers / samples, self.correct.sum(dim=1).double() / samples


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
