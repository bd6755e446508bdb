"""The contract that every backbone keeps."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from layersim.backbones.passage import Passage
from layersim.errors import UserError
from layersim.outputs import LayerFeatures


class Backbone(nn.Module, ABC):
    """A transformer that yields its layers' features and hands over its own head.

    Reading `classifier(final_norm(features))` at the last layer gives exactly the logits of the library's own model.
    """

    num_layers: int
    """L, the number of blocks; embeddings are no layer."""
    num_classes: int
    """C, the classes of the classifier (the vocabulary, for a language model)."""
    input_size: tuple[int, int, int] | None = None
    """Channels, height and width of the images it takes; None where it takes no images."""
    reads_tokens: bool = False
    """Whether every token is a sample, as in a language model, and not every input."""
    norm_before_pooling: bool = False
    """Whether the final norm is part of the features, because the model pools after it and the two do not commute."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The model's norm between the last block and the classifier, (…, D) → (…, D)."""

    @property
    @abstractmethod
    def classifier(self) -> nn.Module:
        """The model's classifier, (…, D) → (…, C)."""

    @abstractmethod
    def forward(self, batch: Mapping[str, Any], layers: Sequence[int] | None = None) -> LayerFeatures:
        """Block outputs before the final norm at the token that counts.

        Args:
            batch: what the DataModule yields.
            layers: ascending layer numbers 0 … L − 1 to return; all where None.

        Returns:
            (K, N, D) features of those K layers, with the batch's targets and positions.
        """

    def passage(self, batch: Mapping[str, Any]) -> Passage:
        """The batch's way through the model's blocks, not yet gone.

        Raises:
            UserError: a backbone that has no such way to offer.
        """
        raise UserError(f"{type(self).__name__} does not say how a batch goes through its blocks (`passage`).")
