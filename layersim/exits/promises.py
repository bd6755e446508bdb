"""What calibration can promise of a threshold's risk, and how it knows. Letters: n samples, δ = 1 − confidence.

A promise answers one question of one threshold, fixed before the data were seen: do these n losses allow to say that
the risk is at most the target μ? Its test is valid: were the mean μ or more, it would pass with probability at most δ,
whatever the distribution of the losses and whatever n. Its upper bound is the least mean that the test rejects, and so
at least the true mean with probability 1 − δ.

Hoeffding–Bentkus p-values (arXiv 2110.01052), often used here, are left out: for losses of 0 and 1 the binomial tail is
never larger, and on [−1, 1] they do not see that most differences are zero, which betting does.
"""

from abc import ABC, abstractmethod
from math import ceil, log, log1p

import torch
from scipy.special import bdtr, betaincinv  # type: ignore[import-untyped]
from torch import Tensor

BET = 0.75
"""The greatest bet: with it capital stays positive against means down to 1 − 1 / BET = −1/3."""


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


class Counted(Promise):
    """For losses of 0 and 1: with probability 1 − δ over draws of the n samples, by the exact binomial tail
    P(Binomial(n, target) ≤ ones); the bound is that of Clopper and Pearson (1934)."""

    def keeps(self, losses: Tensor) -> bool:
        return bool(bdtr(round(losses.sum().item()), len(losses), self.target) <= self.delta)

    def bound(self, losses: Tensor) -> float:
        ones = round(losses.sum().item())
        return float(betaincinv(ones + 1, len(losses) - ones, 1 - self.delta)) if ones < len(losses) else 1.0

    def samples_needed(self) -> int:
        return ceil(log(self.delta) / log1p(-self.target))


class Bet(Promise):
    """For losses in [−1, 1] in random order: with probability 1 − δ over draws of the n samples, by betting."""

    def keeps(self, losses: Tensor) -> bool:
        return betting_p_value(losses, self.target, self.delta) <= self.delta

    def bound(self, losses: Tensor) -> float:
        return betting_upper_bound(losses, self.target, self.delta)

    def samples_needed(self) -> int:
        return ceil(-log(self.delta) / log1p(BET * self.target))


def betting_p_value(losses: Tensor, target: float, delta: float) -> float:
    """One over the greatest capital reached by betting on losses (n,), each at most 1, that their mean is below target.

    Capital starts at 1 and is multiplied by 1 + λi (target − xi). As long as the mean is at least the target, no bet
    gains on average, so that capital ever reaches 1 / δ with probability at most δ (Ville). The bets are those of
    Waudby-Smith and Ramdas (arXiv 2010.09686, section 4) with a floor under the variance's estimate that suits rare
    losses: λi = min(BET, √(2 ln(1/δ) i / (n (target + Σj<i xj²)))). They look only at what came before, but tuned to δ
    they make the p-value sharp at that δ; and they trust the order to be random.

    Args:
        losses: in [−1, 1].
        target: in (0, 1).
    """
    return min(1.0, (-_log_capital(losses, _bets(losses, target, delta), target)).exp().item())


def betting_upper_bound(losses: Tensor, target: float, delta: float) -> float:
    """The least mean above −1/3 against which the capital of `betting_p_value` reaches 1 / δ; 1 where none below 1.

    The bets stay those made for `target`: any would give a valid bound, these the sharpest near it.
    """
    bets = _bets(losses, target, delta)
    low, high = 1 - 1 / BET, 1.0
    for _ in range(50):  # to 1e-15: what is rejected stays so further up
        middle = (low + high) / 2
        rejected = _log_capital(losses, bets, middle).item() >= log(1 / delta)
        low, high = (low, middle) if rejected else (middle, high)
    return high


def _bets(losses: Tensor, target: float, delta: float) -> Tensor:
    before = losses.square().cumsum(dim=0).roll(1)
    before[0] = 0
    place = torch.arange(1, len(losses) + 1, dtype=torch.float64)
    return (2 * log(1 / delta) / len(losses) * place / (target + before)).sqrt().clamp(max=BET)


def _log_capital(losses: Tensor, bets: Tensor, mean: float) -> Tensor:
    return (bets * (mean - losses)).log1p().cumsum(dim=0).amax()
