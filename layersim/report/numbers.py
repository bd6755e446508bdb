"""How numbers are told. Letter: L layers."""

from collections.abc import Sequence

import numpy as np


def perplexity(losses: Sequence[float]) -> list[float]:
    """(L,) exp of mean cross-entropies in nats a token, such as a record's `loss`; ∞ where that is beyond a float."""
    with np.errstate(over="ignore"):
        return [float(each) for each in np.exp(np.asarray(losses, dtype=np.float64))]


def three(value: float) -> str:
    """A number with three digits behind the point, and with three in all from 10 000 on, as perplexities can be."""
    return f"{value:.3f}" if not abs(value) >= 1e4 else f"{value:.3g}"
