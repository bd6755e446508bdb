"""Finite-sample tests of a mean, and the upper bounds that they give. Letters: n independent samples, δ error level.

Each test asks whether the mean loss could still be as large as a target μ. Its p-value is valid: were the mean μ or
more, it would be ≤ δ with probability at most δ, whatever the distribution of the losses and whatever n. Each upper
bound is the least mean that the test rejects at level δ, and so at least the true mean with probability 1 − δ.

Hoeffding–Bentkus p-values (arXiv 2110.01052), often used here, are left out: for losses of 0 and 1 the binomial tail is
never larger, and on [−1, 1] they do not see that most differences are zero, which betting does.
"""

from collections.abc import Callable
from math import lgamma, log, log1p

import torch
from torch import Tensor

BET = 0.75
"""The greatest bet: with it capital stays positive against means down to 1 − 1 / BET = −1/3."""


def binomial_p_value(count: int, n: int, target: float) -> float:
    """P(Binomial(n, target) ≤ count), for losses of 0 and 1 of which `count` are 1; target in (0, 1)."""
    if count >= n:
        return 1.0
    k = torch.arange(count + 1, dtype=torch.float64)
    log_choices = lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return (log_choices + k * log(target) + (n - k) * log1p(-target)).logsumexp(dim=0).exp().item()


def binomial_upper_bound(count: int, n: int, delta: float) -> float:
    """The upper bound of Clopper and Pearson (1934) on the probability of a 1."""
    return _least_rejected(lambda mean: binomial_p_value(count, n, mean) <= delta, low=0.0)


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
    return _least_rejected(lambda mean: _log_capital(losses, bets, mean).item() >= log(1 / delta), low=1 - 1 / BET)


def _bets(losses: Tensor, target: float, delta: float) -> Tensor:
    before = losses.square().cumsum(dim=0).roll(1)
    before[0] = 0
    place = torch.arange(1, len(losses) + 1, dtype=torch.float64)
    return (2 * log(1 / delta) / len(losses) * place / (target + before)).sqrt().clamp(max=BET)


def _log_capital(losses: Tensor, bets: Tensor, mean: float) -> Tensor:
    return (bets * (mean - losses)).log1p().cumsum(dim=0).amax()


def _least_rejected(rejects: Callable[[float], bool], low: float) -> float:
    """The least number in (low, 1) that is rejected, to 1e-15, or 1; what is rejected stays so further up."""
    high = 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if rejects(middle):
            high = middle
        else:
            low = middle
    return high
