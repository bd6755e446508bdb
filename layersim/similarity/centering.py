"""Taking the mean off without losing the rest of the number."""

from torch import Tensor


def centred(values: Tensor, dim: int) -> Tensor:
    """`values` less their mean along `dim`, as a new tensor of the same shape and dtype.

    The first entry is subtracted before the mean is taken: equal entries become exactly zero, and a mean far from zero
    eats no digits.
    """
    residual = values - values.narrow(dim, 0, 1)
    return residual.sub_(residual.mean(dim, keepdim=True))
