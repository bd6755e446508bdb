"""Distillation from the last layer, and the loss that a tuned lens is trained on."""

import torch
from torch import Tensor

from layersim.errors import UserError, check_finite, check_share
from layersim.objectives.aligned import Aligned
from layersim.objectives.base import Objective
from layersim.objectives.reading import Reading
from layersim.objectives.weights import LayerWeights


class Distilled(Aligned):
    """λL CE(L) + Σ λl ((1 − α) CE(l) + α τ² KL(p(L) ‖ p(l))) over l < L: the aligned loss, below the last layer partly
    on the last layer's own distribution p(L), softened by the temperature τ and cut off from the gradient.

    The multi-exit distillation of Phuong & Lampert 2019 ("Distillation-based training for multi-exit architectures")
    and Zhang et al. 2019 (arXiv 1905.08094), without its term on features. Evaluation reports Σ λl CE(l).

    Args:
        weights: the λ, as in `Aligned`; the last layer's may not be zero, since it teaches.
        alpha: α in 0 … 1, the share of a layer's loss that the teacher gives (0 is `Aligned`).
        temperature: τ > 0.
    """

    def __init__(self, weights: LayerWeights = "linear", alpha: float = 0.5, temperature: float = 2.0) -> None:
        super().__init__(weights)
        if self._weights[-1] == 0:  # of a list; a rule's name ends with a letter
            raise UserError(f"Expected a last layer with weight, since it teaches the others, but got {weights}.")
        check_share("alpha", alpha, zero=True, one=True, remedy="Change the objective's option.")
        check_finite("temperature", temperature, remedy="Change the objective's option.")
        self.alpha = alpha
        self.temperature = temperature

    def forward(self, read: Reading) -> Tensor:
        if read.step is None:
            return super().forward(read)
        taught = read.divergences(self.temperature)
        alpha = taught.new_tensor([*[self.alpha] * (len(taught) - 1), 0.0])
        losses = (1 - alpha) * read.losses + alpha * taught
        weights = self.weights(read.num_layers, read.step)
        return torch.dot(losses, losses.new_tensor([weights[layer] for layer in read.layers]))


class KLToLast(Objective):
    """Σ KL(p(L) ‖ p(l)) / (L − 1) over l < L, in nats: each layer is to say what the last one says, whose distribution
    is cut off from the gradient, whatever the targets are (the tuned lens's loss, arXiv 2303.08112).

    For heads of a frozen model: a backbone that trains on it alone can say the same everywhere and nothing anywhere.
    """

    def build(self, num_layers: int) -> None:
        if num_layers < 2:
            raise UserError("KLToLast is of the layers below the last, but the model has one. Change the objective.")

    def forward(self, read: Reading) -> Tensor:
        return read.divergences()[:-1].mean()
