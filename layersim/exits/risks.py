"""Risks: what leaving early costs a sample, against what the full model says. Letters: L layers, N samples."""

from typing import Literal, get_args

from torch import Tensor

from layersim.errors import UserError
from layersim.exits.table import ExitTable

Risk = Literal["error", "disagreement", "loss"]

RISKS: dict[Risk, str] = {
    "error": "the error rate at the exits less that of the full model",
    "disagreement": "the share of samples predicted otherwise than by the full model",
    "loss": "the half Brier score at the exits less that of the full model",
}
"""Each risk in words."""


def drops(table: ExitTable, risk: Risk) -> Tensor:
    """What each sample loses by leaving at each layer, (L, N) float64; 0 at the last layer, and never above 1.

    `error`: 1[wrong here] − 1[wrong at the last layer], in {−1, 0, 1}: leaving early may also save a sample from a
    mistake, and the mean is the difference of two error rates.
    `disagreement`: 1[prediction ≠ the last layer's], in {0, 1}.
    `loss`: half Brier score here − at the last layer, in [−1, 1]. Not the cross-entropy: that is unbounded, so no
    number of samples could promise anything about its mean without knowing more (the quadratic score stands in for it
    as in arXiv 2405.20915).

    Raises:
        UserError: a risk of another name.
    """
    match risk:
        case "error":
            cost = (table.predictions != table.targets).double()
        case "disagreement":
            cost = (table.predictions != table.predictions[-1]).double()
        case "loss":
            cost = table.briers.double()
        case _:
            raise UserError(f"Expected a risk among {', '.join(get_args(Risk))}, but got {risk!r}.")
    return cost - cost[-1]
