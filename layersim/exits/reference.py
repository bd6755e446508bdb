"""What calibration samples looked like to the exits, kept in a few numbers. Letters: L layers, N samples, R ranks."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from scipy.special import betaincinv  # type: ignore[import-untyped]
from torch import Tensor

from layersim.errors import UserError
from layersim.exits.policies import Policy, exit_layer
from layersim.exits.table import ExitTable, at_exits

LEVELS = (0.02, 0.1, 0.3)
"""Shares of the calibration samples in either tail whose growth an alarm watches for."""


@dataclass(frozen=True)
class Reference:
    """Of N calibration samples, how far the tails reached of two numbers that leaving early computes anyway: the first
    layer's doubt, 0 … 1, and the depth, 0 … L: the layers before the exit plus the doubt there.

    Raises:
        UserError: numbers that are none of calibration samples.
    """

    samples: int
    """N."""
    ranks: list[int]
    """(R,) rising; behind the k-th least, and before the k-th greatest, lie fewer than k samples."""
    doubt: list[list[float]]
    """2 × R: the samples at these ranks from below, then from above."""
    depth: list[list[float]]
    """Likewise."""

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in pairwise([0, *self.ranks, self.samples + 1]))
        ends = torch.tensor([self.doubt, self.depth], dtype=torch.float64) if rising else torch.empty(0)
        if ends.shape != (2, 2, len(self.ranks)) or not ends.isfinite().all():
            raise UserError(
                "Expected rising ranks of an alarm's calibration samples, and as many doubts and depths from below and "
                f"from above, but got {self}. Run `layersim exits` again."
            )

    def tails(self, values: Tensor) -> Tensor:
        """Of (2, N) doubts and depths, whether each lies in each tail: (N, 4 R) zeros and ones."""
        ends = torch.tensor([self.doubt, self.depth], dtype=torch.float64).unsqueeze(2)
        values = values.unsqueeze(-1)
        return torch.cat([*(values < ends[:, 0]), *(values > ends[:, 1])], dim=1).double()

    def shares(self, delta: float) -> Tensor:
        """(4 R,) of samples like the N, how many lie in each tail at most: with probability 1 − δ, in all of them.

        Below the k-th least of N samples lies a share that is at most a Beta(k, N + 1 − k) variable, whatever the
        distribution (Wilks 1941), with ties too. Compared with the mere counts of a finite reference, a test that never
        ends would in the end find nothing but the reference's own chance.
        """
        each = delta / (4 * len(self.ranks))
        bounds = [float(betaincinv(k, self.samples + 1 - k, 1 - each)) for k in self.ranks]
        return torch.tensor(4 * bounds, dtype=torch.float64)


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
    ranks = sorted({max(1, round(level * samples)) for level in LEVELS})
    ordered = torch.stack([doubt[0], exits + at_exits(doubt, exits)]).sort(dim=1).values
    places = torch.tensor(ranks) - 1
    ends = torch.stack([ordered[:, places], ordered.flip(1)[:, places]], dim=1)
    return Reference(samples, ranks, *ends.tolist())
