"""The cosine regulariser."""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from layersim.errors import check_finite
from layersim.objectives.base import Objective
from layersim.objectives.reading import Reading
from layersim.objectives.weights import LayerWeights, checked_weights, layer_weights
from layersim.precision import widened


class CosineRegularized(Objective):
    """CE(L) + β Σ λl (1 − cos(hl, hL)): the last layer's loss and a pull of all features towards the last's.

    The paper's ablation (arXiv 2406.14479): it makes features alike but teaches shallow layers little. Features are not
    centred.

    Args:
        beta: β ≥ 0.
        weights: the λ of the penalty, as in `Aligned`.
    """

    def __init__(self, beta: float = 1.0, weights: LayerWeights = "linear") -> None:
        super().__init__()
        self._weights = checked_weights(weights)
        check_finite("beta", beta, zero=True, remedy="Change the objective's option.")
        self.beta = beta

    def build(self, num_layers: int) -> None:
        layer_weights(self._weights, num_layers)

    def choices(self, num_layers: int) -> list[list[int]]:
        """The last layer: a penalty on features gives classifiers no gradient."""
        return [[num_layers - 1]]

    def forward(self, read: Reading) -> Tensor:
        loss, features = read.loss(layer_weights("last", read.num_layers)), widened(read.features)
        distance = 1 - cosine_similarity(features, features[-1:], dim=-1).mean(dim=1)
        pull = torch.dot(distance, distance.new_tensor(layer_weights(self._weights, read.num_layers)))
        return loss + self.beta * pull
