"""What calibration samples looked like to the exits, kept in a few numbers. Letters: L layers, N samples, R ranks."""

from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

import numpy as np
import torch
from scipy.special import betaincinv  # type: ignore[import-untyped]
from torch import Tensor

from layersim.errors import UserError
from layersim.exits.policies import Policy, exit_layer
from layersim.exits.table import ExitTable, at_exits

LEVELS = (0.02, 0.1, 0.3, 0.7, 0.9, 0.98)
"""Shares of the calibration samples at which a distribution is looked at."""


@dataclass(frozen=True)
class Reference:
    """Of N calibration samples, the distribution of two numbers that leaving early computes anyway: the first layer's
    doubt, 0 … 1, and the depth, 0 … L: the layers before the exit plus the doubt there.

    Raises:
        UserError: numbers that are none of calibration samples.
    """

    samples: int
    """N."""
    ranks: list[int]
    """(R,) rising, 1 … N."""
    doubt: list[float]
    """(R,) of the samples at these ranks, the least doubt first."""
    depth: list[float]
    """(R,) likewise."""

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in pairwise([0, *self.ranks, self.samples + 1]))
        fits = len(self.ranks) == len(self.doubt) == len(self.depth) and all(map(isfinite, self.doubt + self.depth))
        if not (rising and fits):
            raise UserError(
                "Expected rising ranks of an alarm's calibration samples, and as many doubts and depths, but got "
                f"{self}. Run `layersim exits` again."
            )

    def beyond(self, values: Tensor) -> Tensor:
        """Of (2, N) doubts and depths, whether each lies below and above each rank: (N, 4 R) zeros and ones."""
        ends = torch.tensor([self.doubt, self.depth], dtype=torch.float64).unsqueeze(1)
        values = values.unsqueeze(-1)
        return torch.cat([*(values < ends), *(values > ends)], dim=1).double()

    def shares(self, delta: float) -> Tensor:
        """(4 R,) how large a share of samples like the N lies there at most: with probability 1 − δ, in all places.

        Below the k-th least of N samples lies a share that is at most a Beta(k, N + 1 − k) variable, whatever the
        distribution, ties and all; above it likewise (Wilks 1941). Set beside the mere counts of a finite reference, a
        test that never ends would in the end find nothing but the reference's own chance.
        """
        below = np.array(2 * self.ranks)
        places = np.concatenate([below, self.samples + 1 - below])
        return torch.from_numpy(betaincinv(places, self.samples + 1 - places, 1 - delta / len(places)))


def doubts(policy: Policy, scores: Tensor, num_classes: int, num_layers: int) -> Tensor:
    """Scores on the scale from 0, the surest, to 1, float64; a score of NaN or −∞, which never leaves, is 1.

    To four digits: rounding in another batch must not move the many samples of which a model is all but certain.
    """
    low, high = policy.bounds(num_classes, num_layers)
    doubt = (high - scores.double()) / (high - low)
    return doubt.nan_to_num(1.0).clamp(0, 1).round(decimals=4)


def reference_of(table: ExitTable, policy: Policy, threshold: float | None, num_classes: int) -> Reference:
    """The reference of the samples of a table that leave by a threshold."""
    layers, samples = table.scores.shape
    exits = exit_layer(table.scores, threshold)
    doubt = doubts(policy, table.scores, num_classes, layers)
    ranks = sorted({min(samples, max(1, round(level * samples))) for level in LEVELS})
    ordered = torch.stack([doubt[0], exits + at_exits(doubt, exits)]).sort(dim=1).values
    return Reference(samples, ranks, *ordered[:, torch.tensor(ranks) - 1].tolist())
