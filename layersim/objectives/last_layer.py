"""Standard training."""

from layersim.objectives.base import Objective
from layersim.objectives.weights import layer_weights


class LastLayer(Objective):
    """Standard training: the cross-entropy at the last layer."""

    def weights(self, num_layers: int, step: int | None) -> list[float]:
        return layer_weights("last", num_layers)
