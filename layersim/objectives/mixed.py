"""The backbone first, then all exits."""

from layersim.objectives.base import weighted_layers
from layersim.objectives.scheduled import Scheduled
from layersim.objectives.weights import LayerWeights, check_share, check_values, layer_weights


class Mixed(Scheduled):
    """Last-layer training up to a share of all steps, the aligned loss from there on: the mixed regime of arXiv
    2407.14320, in one run with one optimizer and one learning-rate schedule. Evaluation reports the aligned loss.

    Args:
        switch: the share of the training's optimizer steps that train the last layer alone, 0 … 1 (0 is `Aligned`, 1
            `LastLayer`).
        weights: the λ from there on, as in `Aligned`.

    Raises:
        UserError: an option out of its range.
    """

    def __init__(self, switch: float = 0.5, weights: LayerWeights = "linear") -> None:
        check_values(weights)
        check_share("switch", switch)
        self.switch = switch
        self._weights = weights

    def weights(self, num_layers: int, step: int | None) -> list[float]:
        aligned = layer_weights(self._weights, num_layers)
        if step is None or self.progress(step) >= self.switch:
            return aligned
        return layer_weights("last", num_layers)

    def choices(self, num_layers: int) -> list[list[int]]:
        return [[num_layers - 1], weighted_layers(layer_weights(self._weights, num_layers))]
