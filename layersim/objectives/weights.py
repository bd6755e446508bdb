"""Layer weights: the λ of the aligned loss."""

from collections.abc import Sequence
from math import fsum, inf, isclose
from numbers import Real
from typing import Any, Literal

import numpy as np
from torch import Tensor

from layersim.errors import UserError

LayerWeights = Literal["linear", "uniform", "last"] | list[float]


def layer_weights(weights: LayerWeights, num_layers: int) -> list[float]:
    """The λ of the aligned loss, (L,) numbers that sum to one, first layer first.

    `linear`: λl = 2l / (L (L + 1)) for l = 1 … L (arXiv 2406.14479, the aligned loss); `uniform`: 1 / L; `last`: all on
    the last layer; or a list of L numbers, none negative, summing to one.

    Raises:
        UserError: a list of another length, with a negative or infinite number, or not summing to one (to 1e-6).
    """
    match numbers := checked_weights(weights):
        case "linear":
            return [2 * layer / (num_layers * (num_layers + 1)) for layer in range(1, num_layers + 1)]
        case "uniform":
            return [1 / num_layers] * num_layers
        case "last":
            return [0.0] * (num_layers - 1) + [1.0]
    if len(numbers) != num_layers:
        raise UserError(
            f"Expected {num_layers} layer weights, one for each layer of the backbone, but got {len(numbers)}. "
            "Change the objective's `weights`, or name a rule: linear, uniform or last."
        )
    return list(numbers)


def checked_weights(weights: object) -> Any:
    """A rule's name, or a user's numbers (a list, a tuple, an array or a tensor) as a list of floats; a UserError tells
    what can be said against them before the number of layers is known."""
    if isinstance(weights, str) and weights in ("linear", "uniform", "last"):
        return weights
    numbers = weights.tolist() if isinstance(weights, Tensor | np.ndarray) else weights
    if isinstance(numbers, Sequence) and not isinstance(numbers, str):  # of numbers, or of tensors of one each
        numbers = [number.item() if isinstance(number, Tensor) and number.ndim == 0 else number for number in numbers]
    if not isinstance(numbers, list) or not all(isinstance(number, Real) for number in numbers):
        raise UserError(f"Expected layer weights linear, uniform, last or a list of numbers, but got {weights!r}.")
    if not all(0 <= number < inf for number in numbers):
        raise UserError(f"Layer weights must be finite and not negative, but got {numbers}.")
    if not isclose(total := fsum(numbers), 1.0, abs_tol=1e-6):
        raise UserError(f"Layer weights must sum to one, but {numbers} sums to {total:g}. Divide each by the sum.")
    return [float(number) for number in numbers]
