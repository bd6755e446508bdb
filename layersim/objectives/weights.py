"""Layer weights: the λ of the aligned loss."""

from math import fsum, isclose, isfinite
from typing import Literal

from layersim.errors import UserError

LayerWeights = Literal["linear", "uniform", "last"] | list[float]


def layer_weights(weights: LayerWeights, num_layers: int) -> list[float]:
    """The λ of the aligned loss, (L,) numbers that sum to one, first layer first.

    `linear`: λl = 2l / (L (L + 1)) for l = 1 … L (arXiv 2406.14479, the aligned loss); `uniform`: 1 / L; `last`: all on
    the last layer; or a list of L numbers, none negative, summing to one.

    Raises:
        UserError: a list of another length, with a negative or infinite number, or not summing to one (to 1e-6).
    """
    match weights:
        case "linear":
            return [2 * layer / (num_layers * (num_layers + 1)) for layer in range(1, num_layers + 1)]
        case "uniform":
            return [1 / num_layers] * num_layers
        case "last":
            return [0.0] * (num_layers - 1) + [1.0]
    check_values(weights)
    if len(weights) != num_layers:
        raise UserError(
            f"Expected {num_layers} layer weights, one for each layer of the backbone, but got {len(weights)}. "
            "Change the objective's `weights`, or name a rule: linear, uniform or last."
        )
    return [float(weight) for weight in weights]


def check_values(weights: LayerWeights) -> None:
    """What can be said against a user's list before the number of layers is known."""
    if isinstance(weights, str):
        if weights not in ("linear", "uniform", "last"):
            raise UserError(f"Expected layer weights linear, uniform, last or a list of numbers, but got {weights!r}.")
        return
    if not all(isfinite(weight) and weight >= 0 for weight in weights):
        raise UserError(f"Layer weights must be finite and not negative, but got {weights}.")
    if not isclose(total := fsum(weights), 1.0, abs_tol=1e-6):
        raise UserError(f"Layer weights must sum to one, but {weights} sums to {total:g}. Divide each by the sum.")
