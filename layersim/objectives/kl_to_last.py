"""The loss that a tuned lens is trained on."""

from torch import Tensor

from layersim.errors import UserError
from layersim.objectives.base import Objective
from layersim.objectives.reading import Reading


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
