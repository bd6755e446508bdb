"""How a quantity is coloured: its range, and which way its colours go."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from layersim.errors import check_choice
from layersim.report.quantity import Quantity

_ZERO = -0.005  # values from here on are shown as 0.00

Range = Literal["fixed", "data"]


@dataclass(frozen=True)
class Scale:
    """How a quantity is coloured: its name for people, the ends of its colours, and theirs (`viridis`, `RdBu_r`)."""

    name: str
    low: float
    high: float
    colors: str


def scale_of(name: str, quantity: Quantity, values: Sequence[ArrayLike], span: Range = "fixed") -> Scale:
    """The colours of a quantity.

    From dark to light where all values are 0 or more, else, and where both signs can be and neither is better, to both
    sides of 0. What is alike is bright, so that where lower is better the colours are turned.

    Args:
        name: of the quantity, for people.
        quantity: whose range `fixed` colours have, but for an end that it has not.
        values: all that will be drawn with these colours.
        span: `fixed`, for pictures of different epochs and runs that can be laid side by side; or `data`, from the
            least value to the greatest, where 0.90 and 0.99 shall be told apart.
    """
    check_choice("colours", span, Range)
    every = np.concatenate([np.empty(0), *(np.asarray(each, dtype=np.float64).ravel() for each in values)])
    every = every[np.isfinite(every)]
    least, most = (float(every.min()), float(every.max())) if every.size else (0.0, 1.0)
    low, high = (None, None) if span == "data" else quantity.range
    signed = least < _ZERO or (quantity.better is None and (quantity.range[0] or 0) < 0)
    if not signed:
        low = least if low is None else max(low, 0.0)
        high = most if high is None else high
    else:
        low = high = max(-least, most) if low is None or high is None else max(abs(low), abs(high))
        low = -low
    if low == high:
        low, high = low - 0.5, high + 0.5
    turned = "_r" if (quantity.better == "lower") != signed else ""
    return Scale(name, low, high, ("RdBu" if signed else "viridis") + turned)
