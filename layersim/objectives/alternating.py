"""Last-layer steps and aligned steps in turn."""

from typing import Literal

from layersim.errors import UserError
from layersim.objectives.base import Objective
from layersim.objectives.weights import LayerWeights, check_values, layer_weights


class Alternating(Objective):
    """Last-layer steps with an aligned step in every `period` (BERxiT; arXiv 2406.14479, for GPT-2).

    Step s is an aligned step where (s + phase) mod period = period − 1, else a last-layer step: with the defaults
    steps 0, 2, 4 … train the last layer and steps 1, 3, 5 … all layers. Evaluation reports the aligned loss.

    Args:
        weights: the λ of the aligned steps, as in `Aligned`.
        period: steps from one aligned step to the next, at least 1 (1 is `Aligned`).
        phase: shifts the aligned steps earlier, 0 … period − 1.
        counts: `steps` of the optimizer, all of whose micro-batches take the same turn; or `micro-batches`, as in the
            paper's code, where under accumulation every optimizer step mixes both losses.
    """

    def __init__(
        self,
        weights: LayerWeights = "linear",
        period: int = 2,
        phase: int = 0,
        counts: Literal["steps", "micro-batches"] = "steps",
    ) -> None:
        check_values(weights)
        if period < 1 or not 0 <= phase < period:
            raise UserError(f"Expected period ≥ 1 and 0 ≤ phase < period, but got period {period}, phase {phase}.")
        if counts not in ("steps", "micro-batches"):
            raise UserError(f"Expected counts steps or micro-batches, but got {counts!r}.")
        self._weights = weights
        self.period = period
        self.phase = phase
        self.counts = counts

    def weights(self, num_layers: int, step: int | None) -> list[float]:
        aligned = layer_weights(self._weights, num_layers)
        if step is None or (step + self.phase) % self.period == self.period - 1:
            return aligned
        return layer_weights("last", num_layers)
