"""Distillation from the last layer."""

from layersim.errors import UserError
from layersim.objectives.base import Objective
from layersim.objectives.distillation import Distillation
from layersim.objectives.weights import LayerWeights, check_values, layer_weights


class Distilled(Objective):
    """λL CE(L) + Σ λl ((1 − α) CE(l) + α τ² KL(p(L) ‖ p(l))) over l < L: the aligned loss, below the last layer partly
    on the last layer's own distribution p(L), softened by the temperature τ and cut off from the gradient.

    The multi-exit distillation of Phuong & Lampert 2019 ("Distillation-based training for multi-exit architectures")
    and Zhang et al. 2019 (arXiv 1905.08094), without its term on features. Evaluation reports Σ λl CE(l). The logits of
    all layers are alive at once: at vocabulary scale it is refused.

    Args:
        weights: the λ, as in `Aligned`; the last layer's may not be zero, since it teaches.
        alpha: α in 0 … 1, the share of a layer's loss that the teacher gives (0 is `Aligned`).
        temperature: τ > 0.

    Raises:
        UserError: an option out of its range.
    """

    def __init__(self, weights: LayerWeights = "linear", alpha: float = 0.5, temperature: float = 2.0) -> None:
        check_values(weights)
        if not isinstance(weights, str) and weights[-1] == 0:
            raise UserError(f"Expected a last layer with weight, since it teaches the others, but got {weights}.")
        self._weights = weights
        self.distillation = Distillation(alpha, temperature)

    def weights(self, num_layers: int, step: int | None) -> list[float]:
        return layer_weights(self._weights, num_layers)
