"""Layer weights that move over the training."""

from layersim.errors import UserError
from layersim.objectives.base import weighted_layers
from layersim.objectives.scheduled import Scheduled
from layersim.objectives.weights import LayerWeights, check_share, check_values, layer_weights


class Progressive(Scheduled):
    """Σ λl(s) CE(l) with λ(s) = (1 − t) λ(start) + t λ(end) at optimizer step s, where t rises evenly from 0 at the
    first step to 1 at the share `until` of the training, and stays. Evaluation reports the loss with the end's λ.

    Args:
        start: the λ at the first step, as in `Aligned`: `last`, or a list such as [1, 0, 0] for shallow layers first.
        end: the λ in the end.
        until: the share of the training's optimizer steps after which the end's λ hold, above 0, at most 1.

    Raises:
        UserError: an option out of its range.
    """

    def __init__(self, start: LayerWeights = "last", end: LayerWeights = "linear", until: float = 1.0) -> None:
        check_values(start)
        check_values(end)
        check_share("until", until)
        if until == 0:
            raise UserError("Expected until above 0, but got 0: that is Aligned with the end's weights from the start.")
        self.start = start
        self.end = end
        self.until = until

    def weights(self, num_layers: int, step: int | None) -> list[float]:
        start, end = layer_weights(self.start, num_layers), layer_weights(self.end, num_layers)
        if step is None:
            return end
        gone = min(1.0, self.progress(step) / self.until)
        return [(1 - gone) * first + gone * last for first, last in zip(start, end, strict=True)]

    def choices(self, num_layers: int) -> list[list[int]]:
        return [weighted_layers(layer_weights(rule, num_layers)) for rule in (self.start, self.end)]
