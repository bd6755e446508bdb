"""What calibration can promise of a threshold's risk, and how it knows. Letters: n samples, δ = 1 − confidence.

A promise answers one question of one threshold, fixed before the data were seen: do these n losses allow to say that
the risk is at most the target μ? Its test is valid: were the mean μ or more, it would pass with probability at most δ,
whatever the distribution of the losses and whatever n. Its upper bound is the least mean that the test rejects, and so
at least the true mean with probability 1 − δ.

Hoeffding–Bentkus p-values (arXiv 2110.01052), often used here, are left out: for losses of 0 and 1 the binomial tail is
never larger, and on [−1, 1] they do not see that most differences are zero, which betting does.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import ceil, log, log1p

import torch
from scipy.special import bdtr, betaincinv  # type: ignore[import-untyped]
from torch import Tensor

BET = 0.75
"""The greatest bet: with it capital stays positive against means down to 1 − 1 / BET = −1/3."""


@dataclass(frozen=True)
class Promise(ABC):
    """A bound on the risk that holds for new samples drawn like the n."""

    target: float
    """The risk that must not be exceeded, in (0, 1)."""
    delta: float
    """The probability with which the promise may fail, in (0, 1); a promise about a mean does not look at it."""
    needs_monotone = False
    """Whether a sample's loss must never fall as the threshold does; calibration then takes its running maximum."""

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
    """For losses in [−1, 1] in random order: with probability 1 − δ over draws of the n samples, by betting that their
    mean is below the target.

    Capital starts at 1 and is multiplied by 1 + λi (target − xi). As long as the mean is at least the target, no bet
    gains on average, so that capital ever reaches 1 / δ with probability at most δ (Ville). The bets are those of
    Waudby-Smith and Ramdas (arXiv 2010.09686, section 4) with a floor under the variance's estimate that suits rare
    losses: λi = min(BET, √(2 ln(1/δ) i / (n (target + Σj<i xj²)))). They look only at what came before, but tuned to δ
    they make the p-value sharp at that δ; and they trust the order to be random.
    """

    def keeps(self, losses: Tensor) -> bool:
        return self.p_value(losses) <= self.delta

    def p_value(self, losses: Tensor) -> float:
        """One over the greatest capital reached."""
        return min(1.0, (-_log_capital(losses, self._bets(losses), self.target)).exp().item())

    def bound(self, losses: Tensor) -> float:
        """The least mean above −1/3 against which capital reaches 1 / δ; 1 where none below 1.

        The bets stay those made for the target: any would give a valid bound, these the sharpest near it.
        """
        bets = self._bets(losses)
        low, high = 1 - 1 / BET, 1.0
        for _ in range(50):  # to 1e-15: what is rejected stays so further up
            middle = (low + high) / 2
            rejected = _log_capital(losses, bets, middle).item() >= log(1 / self.delta)
            low, high = (low, middle) if rejected else (middle, high)
        return high

    def samples_needed(self) -> int:
        return ceil(-log(self.delta) / log1p(BET * self.target))

    def _bets(self, losses: Tensor) -> Tensor:
        before = losses.square().cumsum(dim=0).roll(1)
        before[0] = 0
        place = torch.arange(1, len(losses) + 1, dtype=torch.float64)
        return (2 * log(1 / self.delta) / len(losses) * place / (self.target + before)).sqrt().clamp(max=BET)


def _log_capital(losses: Tensor, bets: Tensor, mean: float) -> Tensor:
    return (bets * (mean - losses)).log1p().cumsum(dim=0).amax()
