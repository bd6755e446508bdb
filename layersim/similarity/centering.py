"""Taking the mean off without losing the rest of the number."""

from torch import Tensor


def center(values: Tensor) -> Tensor:
    """The mean along the first dimension: (N, …) to (…).

    It is taken of what differs from the first entry: so the mean of N equal entries is exactly that entry, and values
    far from zero lose no digits. What is left of them less this mean has a mean of rounding's size, not of exactly zero.
    """
    return values[0] + (values - values[0]).mean(0)
