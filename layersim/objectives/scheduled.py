"""Weights that change from step to step: in turn, once, or little by little."""

from typing import Literal

from layersim.errors import UserError, at_least, check_choice, check_share
from layersim.objectives.base import WeightedSum
from layersim.objectives.reading import Step, weighted_layers
from layersim.objectives.weights import LayerWeights, checked_weights, layer_weights

Counts = Literal["steps", "micro-batches"]


class _Between(WeightedSum):
    """Goes between two rules of weights: at first `start`; in evaluation and in the end `end`."""

    def __init__(self, start: LayerWeights, end: LayerWeights) -> None:
        super().__init__()
        self.start = checked_weights(start)
        self.end = checked_weights(end)

    def choices(self, num_layers: int) -> list[list[int]]:
        return [weighted_layers(layer_weights(rule, num_layers)) for rule in (self.start, self.end)]


class Alternating(_Between):
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
        self, weights: LayerWeights = "linear", period: int = 2, phase: int = 0, counts: Counts = "steps"
    ) -> None:
        period = at_least(1, "--model.objective.period", period)
        super().__init__("last" if period > 1 else weights, weights)
        self.period = period
        self.phase = at_least(0, "--model.objective.phase", phase)
        if phase >= period:
            raise UserError(f"Expected phase below period, but got period {period}, phase {phase}.")
        check_choice("counts", counts, Counts)
        self.counts = counts

    def weights(self, num_layers: int, step: Step | None) -> list[float]:
        count = -1 if step is None else step.number if self.counts == "steps" else step.batch
        aligned = step is None or (count + self.phase) % self.period == self.period - 1
        return layer_weights(self.end if aligned else self.start, num_layers)


class Mixed(_Between):
    """Last-layer training up to a share of all steps, the aligned loss from there on: the mixed regime of arXiv
    2407.14320, in one run with one optimizer and one learning-rate schedule. Evaluation reports the aligned loss.

    It follows `max_epochs` and the batch size by itself. A resumed training, of as many steps an epoch, goes on where
    the step stands in the length it has now.

    Args:
        switch: the share of the training's optimizer steps that train the last layer alone, 0 … 1 (0 is `Aligned`, 1
            `LastLayer`).
        weights: the λ from there on, as in `Aligned`.
    """

    follows_length = True

    def __init__(self, switch: float = 0.5, weights: LayerWeights = "linear") -> None:
        super().__init__("last", weights)
        check_share("switch", switch, zero=True, one=True, remedy="Change the objective's option.")
        self.switch = switch

    def weights(self, num_layers: int, step: Step | None) -> list[float]:
        aligned = step is None or step.progress >= self.switch
        return layer_weights(self.end if aligned else self.start, num_layers)


class Progressive(_Between):
    """Σ λl(s) CE(l) with λ(s) = (1 − t) λ(start) + t λ(end) at optimizer step s, where t rises evenly from 0 at the
    first step to 1 at the share `until` of the training, and stays. Evaluation reports the loss with the end's λ.

    Args:
        start: the λ at the first step, as in `Aligned`: `last`, or a list such as [1, 0, 0] for shallow layers first.
        end: the λ in the end.
        until: the share of the training's optimizer steps after which the end's λ hold, above 0, at most 1.
    """

    follows_length = True

    def __init__(self, start: LayerWeights = "last", end: LayerWeights = "linear", until: float = 1.0) -> None:
        super().__init__(start, end)
        check_share("until", until, one=True, remedy="From the start Aligned has the end's weights.")
        self.until = until

    def weights(self, num_layers: int, step: Step | None) -> list[float]:
        start, end = layer_weights(self.start, num_layers), layer_weights(self.end, num_layers)
        if step is None:
            return end
        gone = min(1.0, step.progress / self.until)
        return [(1 - gone) * first + gone * last for first, last in zip(start, end, strict=True)]
