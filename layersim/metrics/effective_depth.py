"""Effective depth: how many layers a task needs."""

from torch import Tensor

from layersim.errors import UserError


def effective_depth(accuracy: Tensor, epsilon: float) -> int:
    """Smallest layer, counted from 1, whose accuracy is at least 1 − ε, else L (arXiv 2406.14479).

    Args:
        accuracy: (L,) layer accuracies.
        epsilon: the error that is tolerated, 0 … 1.

    Raises:
        UserError: ε outside 0 … 1.
    """
    if not 0 <= epsilon <= 1:
        raise UserError(f"Expected an epsilon in 0 … 1, but got {epsilon}.")
    for layer, share in enumerate(accuracy.tolist(), start=1):
        if round(1 - share - epsilon, 12) <= 0:  # in binary 1 − 0.18 is a little more than 0.82
            return layer
    return len(accuracy)
