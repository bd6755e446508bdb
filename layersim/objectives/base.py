"""What an objective is."""

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor

from layersim.objectives.distillation import Distillation


class Objective(ABC):
    """A scalar to minimise: a weighted sum of the losses read at some layers, and perhaps a penalty on their features.

    It sees losses and features, never a model, and says beforehand which layers it needs, so that nothing else is
    computed. The weights, L numbers λ that sum to one, are known before anything is computed, too: it lets a head sum a
    vocabulary's gradients in one pass.
    """

    period: int = 1
    """Steps after which the choice of layers repeats."""
    counts: Literal["steps", "micro-batches"] = "steps"
    """What a step is in training: the optimizer's, or a batch of one process, of which gradients may accumulate."""
    seed: int = 0
    """The run's, of whatever a step draws; the module tells it before training, the same on all processes."""
    distillation: Distillation | None = None
    """What of each layer's loss below the last comes from the last layer's distribution and not from the labels."""

    @abstractmethod
    def weights(self, num_layers: int, step: int | None) -> list[float]:
        """The λ at a training step, (L,) numbers summing to one; `step` None stands for evaluation.

        Raises:
            UserError: the weights do not fit this number of layers.
        """

    def layers(self, num_layers: int, step: int | None) -> list[int]:
        """The layers (0 … L − 1, ascending) whose features are needed at this step, for their loss or the penalty."""
        return weighted_layers(self.weights(num_layers, step))

    def choices(self, num_layers: int) -> list[list[int]]:
        """The choices of layers that training steps read, or those that leave most unread, as DDP must know them."""
        return [self.layers(num_layers, step) for step in range(self.period)]

    def penalty(self, features: Tensor, num_layers: int) -> Tensor | None:
        """What is added to the weighted losses, (), from the (K, N, D) features of the K layers that `layers` named."""
        return None


def weighted_layers(weights: list[float]) -> list[int]:
    """The layers (0 … L − 1, ascending) whose weight is not zero."""
    return [layer for layer, weight in enumerate(weights) if weight > 0]
