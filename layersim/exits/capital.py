"""What bets have made of 1: a test of means that may be looked at after every sample, for ever.

Letters: n samples, G games, B bets of each.
"""

from math import log
from typing import Any

import torch
from torch import Tensor

FRACTIONS = 0.8 * 2.0 ** -torch.arange(6, dtype=torch.float64)
"""(B,) shares of its capital that the least value costs a bet: there is one for small rises and one for large."""
HORIZON = 1000
"""Samples in which the money that is kept for later falls to 1/√2 of what it was: it never runs out."""


class Capital:
    """A bet on G games that the mean of some game's values lies above its target; the capital starts at 1.

    Whatever came before a sample, its values lie in [low, 1] and have means of at most the targets: as long as that is
    so no bet gains on average, and capital ever reaches 1 / δ with probability at most δ (Ville 1939). Half of it is
    spread over all games and bets at once. The other half waits, and is put in little by little, in the same way: money
    that has lost nothing to the quiet time before finds a change soon, however late it comes. All money on one bet
    grows by the same factor, so that G B numbers are the state.

    Args:
        targets: (G,) float64, above `low`.
        low: the least value.
    """

    def __init__(self, targets: Tensor, low: float) -> None:
        self.targets, self.low = targets, low
        self.stakes = FRACTIONS / (targets - low).unsqueeze(1)
        self.reset()

    def reset(self) -> None:
        """To the first sample."""
        self.samples = 0
        self.bets = torch.full((self.stakes.numel(),), log(0.5 / self.stakes.numel()), dtype=torch.float64)

    def update(self, values: Tensor) -> Tensor:
        """The logarithm of the capital after each of n more samples, (n,), of their (n, G) values."""
        before = self.samples + torch.arange(len(values) + 1, dtype=torch.float64)
        kept = 0.5 * (1 + before / HORIZON).rsqrt()
        put_in = (kept[:-1] - kept[1:]).log() - log(len(self.bets))
        gains = (self.stakes * (values - self.targets).unsqueeze(-1)).log1p().flatten(1)
        grown = gains.cumsum(dim=0)
        money = grown + torch.logaddexp(self.bets, (put_in.unsqueeze(1) - grown + gains).logcumsumexp(dim=0))
        if len(values):
            self.bets, self.samples = money[-1], self.samples + len(values)
        return torch.logaddexp(kept[1:].log(), money.logsumexp(dim=1))

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self.samples, "bets": self.bets.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.samples, self.bets = state["samples"], torch.tensor(state["bets"], dtype=torch.float64)
