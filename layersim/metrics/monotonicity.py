"""What rises with the layer: a sample's likeness to its last layer, and the probability of its class.

Two theorems are measured here (Jiang et al. 2025, arXiv 2406.14479, theorems 2.1 and 2.2): where features lie on the
segment from the first to the last (the geodesic assumption), COS(h_l, h_L) rises with l; with neural collapse besides,
so does the true class's probability. Letters: L layers, N samples, D width.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from layersim.errors import check_choice
from layersim.metrics.readout import ReadoutMetric, counts
from layersim.outputs import LayerOutput
from layersim.similarity.directions import Centering, directions
from layersim.similarity.features import as_features


class Rise(NamedTuple):  # torchmetrics hands on no frozen dataclass
    """How a quantity that every sample has at every layer goes up. NaN where a sample has NaN there."""

    mean: Tensor
    """(L,) float64, over the samples."""
    steps: Tensor
    """(L − 1,) float64 shares of the samples for which it is greater at layer l + 1 than at l."""
    throughout: float
    """Share of the samples for which it is so at every step."""


def rise(values: Tensor) -> Rise:
    """How (L, N) values, a column a sample, rise from layer to layer; equal values do not."""
    return _rise(*_counts(torch.as_tensor(values, dtype=torch.float64)))


def cosine_to_last(features: Tensor, *, centering: Centering = "samples") -> Tensor:
    """The cosine of each sample's features at every layer to those at its last: COS(h_l, h_L) before the mean is taken.

    Args:
        features: (L, N, D) of any floating dtype.
        centering: as of `layersim.similarity.cosine`; "samples" is the paper's.

    Returns:
        (L, N) float64, NaN where a vector is zero after centring, or not finite.

    Raises:
        UserError: an unknown centering, or not (L, N, D).
    """
    check_choice("centering", centering, Centering)
    features = as_features(features)

    def units(layer: Tensor) -> Tensor:
        return torch.cat([chunk[0] for chunk, _ in directions(layer.double()[None], None, centering)])

    last = units(features[-1])
    return torch.stack([(units(layer) * last).sum(dim=1) for layer in features])


class TargetProbability(ReadoutMetric):
    """How the true class's probability rises with the layer, over all samples.

    `compute` gives a `Rise`, or None where no sample had a target.
    """

    total: Tensor
    steps: Tensor
    throughout: Tensor
    samples: Tensor

    def __init__(self, num_layers: int) -> None:
        total = torch.zeros(num_layers, dtype=torch.float64)
        super().__init__(total=total, steps=counts(num_layers - 1), throughout=counts(), samples=counts())

    def update(self, output: LayerOutput) -> None:
        if output.features.targets is None:
            return
        log_odds = output.readout.target_log_odds.double()
        _, steps, throughout, samples = _counts(log_odds)
        self.add(total=log_odds.sigmoid().sum(dim=1), steps=steps, throughout=throughout, samples=samples)

    def compute(self) -> Rise | None:
        if self.samples == 0:
            return None
        return _rise(self.total, self.steps, self.throughout, self.samples)


def _counts(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of (L, N) values: (L,) sums, and how many samples rise at (L − 1,) each step, at all of them, and are there."""
    rises = values[1:] > values[:-1]
    samples = torch.tensor(values.shape[1], device=values.device)
    return values.double().sum(dim=1), rises.sum(dim=1), rises.all(dim=0).sum(), samples


def _rise(total: Tensor, steps: Tensor, throughout: Tensor, samples: Tensor) -> Rise:
    missing = total.isnan()  # a comparison with NaN is false, and would count as a fall
    shares = (steps / samples.double()).masked_fill(missing[1:] | missing[:-1], torch.nan)
    every = math.nan if missing.any() else (throughout / samples.double()).item()
    return Rise(total / samples, shares, every)
