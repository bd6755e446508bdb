"""What an objective is: a loss of what a training step, or an evaluation, read of a model's layers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import Tensor, nn

from layersim.errors import UserError
from layersim.objectives.reading import Reading, Step, weighted_layers


class Objective(nn.Module, ABC):
    """A scalar to minimise, made of what was read of some layers.

    It sees losses, logits and features, never a model, and says beforehand which layers it needs, so that nothing else
    is computed. Its parameters, if it has any, are trained without weight decay, and saved, with the model's.
    """

    follows_length: bool = False
    """Whether it changes over the training, whose length must then be known."""

    def build(self, num_layers: int) -> None:
        """Checks options, and makes parameters, that depend on the number of layers; called once, by the module.

        Raises:
            UserError: an option that does not fit this number of layers.
        """
        self.layers(num_layers, None)

    def layers(self, num_layers: int, step: Step | None) -> list[int]:
        """The layers (0 … L − 1, ascending) that are read at a training step, or, `step` None, in evaluation: all."""
        return list(range(num_layers))

    def checked_layers(self, num_layers: int, step: Step | None) -> list[int]:
        """The same, checked.

        Raises:
            UserError: they are not some of the layers, ascending.
        """
        asked = self.layers(num_layers, step)
        asked = [*asked] if isinstance(asked, Iterable) else asked
        layers = [int(layer) for layer in asked] if isinstance(asked, list) else []
        if not layers or layers != asked or layers != sorted({*layers} & {*range(num_layers)}):
            raise UserError(
                f"Expected some of the layers 0 … {num_layers - 1}, ascending, but {type(self).__name__} asks for "
                f"{asked}. Change its `layers`."
            )
        return layers

    def choices(self, num_layers: int) -> list[list[int]]:
        """The choices of layers whose classifiers training steps use, or those that leave most unused, as DDP must know
        them. To be told where they are not those that the first step reads."""
        return [self.checked_layers(num_layers, Step(length=1))]

    @abstractmethod
    def forward(self, read: Reading) -> Tensor:
        """The loss, (), from what was read at `layers`; it needs a gradient in training, not in evaluation."""

    def checked(self, loss: object, *, trains: bool) -> Tensor:
        """The loss; refuses, with a UserError, what a step got in its place, and, where it trains, one without a
        gradient."""
        if isinstance(loss, Tensor) and loss.shape == () and (loss.requires_grad or not trains):
            return loss
        came = type(loss).__name__
        if isinstance(loss, Tensor):
            came = f"one of shape {tuple(loss.shape)} {'with' if loss.requires_grad else 'without'} a gradient"
        raise UserError(
            f"Expected a loss of shape (){' with a gradient' * trains} from {type(self).__name__}, but got {came}. "
            "Change its `forward`, the objective, or what is frozen, so that it reads something that trains."
        )


class WeightedSum(Objective):
    """Σ λl CEl with weights that are known before anything is computed.

    That lets a head sum a vocabulary's gradients in one pass. Layers of weight zero are not read.
    """

    @abstractmethod
    def weights(self, num_layers: int, step: Step | None) -> list[float]:
        """The λ at a training step, (L,) numbers summing to one; `step` None stands for evaluation.

        Raises:
            UserError: the weights do not fit this number of layers.
        """

    def layers(self, num_layers: int, step: Step | None) -> list[int]:
        return weighted_layers(self.weights(num_layers, step))

    def forward(self, read: Reading) -> Tensor:
        return read.loss(self.weights(read.num_layers, read.step))
