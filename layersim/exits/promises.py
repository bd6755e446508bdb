"""What calibration can promise of a threshold's risk, and how it knows. Letters: n samples, δ = 1 − confidence.

A promise answers one question of one threshold, fixed before the data were seen: do these n losses allow to say that
the risk is at most the target?
"""

from abc import ABC, abstractmethod
from math import ceil, expm1, log, log1p

from torch import Tensor

from layersim.exits.bounds import BET, betting_p_value, betting_upper_bound, binomial_p_value, binomial_upper_bound


class Promise(ABC):
    """A bound on the risk that holds for new samples drawn like the n.

    Args:
        target: the risk that must not be exceeded, in (0, 1).
        delta: the probability with which the promise may fail, in (0, 1); a promise about a mean does not look at it.
    """

    needs_monotone = False
    """Whether a sample's loss must never fall as the threshold does; calibration then takes its running maximum."""

    def __init__(self, target: float, delta: float) -> None:
        self.target = target
        self.delta = delta

    @abstractmethod
    def keeps(self, losses: Tensor) -> bool:
        """Whether the losses (n,) of a threshold, float64 and at most 1, allow the promise."""

    @abstractmethod
    def bound(self, losses: Tensor) -> float:
        """What the promise says of these losses' mean: at most the target where it is kept, up to rounding."""

    @abstractmethod
    def samples_needed(self) -> int:
        """The least n that allows the promise where all losses are zero, as the full model's are."""

    @abstractmethod
    def least_target(self, n: int) -> float:
        """The least target that n losses of zero allow."""


class Expected(Promise):
    """Conformal risk control (arXiv 2208.02814, theorem 1): the risk is at most the target *on average* over draws of
    the n samples. For losses that rise to at most 1 as the threshold falls: (Σ losses + 1) / (n + 1) ≤ target.
    """

    needs_monotone = True

    def keeps(self, losses: Tensor) -> bool:
        return self.bound(losses) <= self.target

    def bound(self, losses: Tensor) -> float:
        return (losses.sum().item() + 1) / (len(losses) + 1)

    def samples_needed(self) -> int:
        return ceil(1 / self.target) - 1

    def least_target(self, n: int) -> float:
        return 1 / (n + 1)


class Counted(Promise):
    """For losses of 0 and 1: with probability 1 − δ over draws of the n samples, by the exact binomial tail."""

    def keeps(self, losses: Tensor) -> bool:
        return binomial_p_value(round(losses.sum().item()), len(losses), self.target) <= self.delta

    def bound(self, losses: Tensor) -> float:
        return binomial_upper_bound(round(losses.sum().item()), len(losses), self.delta)

    def samples_needed(self) -> int:
        return ceil(log(self.delta) / log1p(-self.target))

    def least_target(self, n: int) -> float:
        return -expm1(log(self.delta) / n)


class Bet(Promise):
    """For losses in [−1, 1] in random order: with probability 1 − δ over draws of the n samples, by betting."""

    def keeps(self, losses: Tensor) -> bool:
        return betting_p_value(losses, self.target, self.delta) <= self.delta

    def bound(self, losses: Tensor) -> float:
        return betting_upper_bound(losses, self.target, self.delta)

    def samples_needed(self) -> int:
        return ceil(-log(self.delta) / log1p(BET * self.target))

    def least_target(self, n: int) -> float:
        return min(1.0, expm1(-log(self.delta) / n) / BET)
