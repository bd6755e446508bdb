"""Objectives: which layers' losses count, and how much, at a given step.

An objective is a weighting of the layers' cross-entropies (L numbers λ that sum to one), and in one case a penalty on
the features beside it. It sees losses and features, never a model, and says beforehand which layers it needs, so that
nothing else is computed.
"""

from abc import ABC, abstractmethod
from math import fsum, isclose, isfinite
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from layersim.errors import UserError

LayerWeights = Literal["linear", "uniform", "last"] | list[float]


def layer_weights(weights: LayerWeights, num_layers: int) -> list[float]:
    """The λ of the aligned loss, (L,) numbers that sum to one, first layer first.

    `linear`: λl = 2l / (L (L + 1)) for l = 1 … L (arXiv 2406.14479, the aligned loss); `uniform`: 1 / L; `last`: all on
    the last layer; or a list of L numbers, none negative, summing to one.

    Raises:
        UserError: a list of another length, with a negative or infinite number, or not summing to one (to 1e-6).
    """
    match weights:
        case "linear":
            return [2 * layer / (num_layers * (num_layers + 1)) for layer in range(1, num_layers + 1)]
        case "uniform":
            return [1 / num_layers] * num_layers
        case "last":
            return [0.0] * (num_layers - 1) + [1.0]
    _check_values(weights)
    if len(weights) != num_layers:
        raise UserError(
            f"Expected {num_layers} layer weights, one for each layer of the backbone, but got {len(weights)}. "
            "Change the objective's `weights`, or name a rule: linear, uniform or last."
        )
    return [float(weight) for weight in weights]


def _check_values(weights: LayerWeights) -> None:
    """What can be said against a user's list before the number of layers is known."""
    if isinstance(weights, str):
        if weights not in ("linear", "uniform", "last"):
            raise UserError(f"Expected layer weights linear, uniform, last or a list of numbers, but got {weights!r}.")
        return
    if not all(isfinite(weight) and weight >= 0 for weight in weights):
        raise UserError(f"Layer weights must be finite and not negative, but got {weights}.")
    if not isclose(total := fsum(weights), 1.0, abs_tol=1e-6):
        raise UserError(f"Layer weights must sum to one, but {weights} sums to {total:g}. Divide each by the sum.")


class Objective(ABC):
    """A scalar to minimise: a weighted sum of the losses read at some layers, and perhaps a penalty on their features.

    The weights are known before anything is computed: it lets a head sum a vocabulary's gradients in one pass.
    """

    period: int = 1
    """Steps after which the choice of layers repeats."""
    counts: Literal["steps", "micro-batches"] = "steps"
    """What a step is in training: the optimizer's, or a batch of one process, of which gradients may accumulate."""

    @abstractmethod
    def weights(self, num_layers: int, step: int | None) -> list[float]:
        """The λ at a training step, (L,) numbers summing to one; `step` None stands for evaluation.

        Raises:
            UserError: the weights do not fit this number of layers.
        """

    def layers(self, num_layers: int, step: int | None) -> list[int]:
        """The layers (0 … L − 1, ascending) whose features are needed at this step, for their loss or the penalty."""
        return [layer for layer, weight in enumerate(self.weights(num_layers, step)) if weight > 0]

    def penalty(self, features: Tensor, num_layers: int) -> Tensor | None:
        """What is added to the weighted losses, (), from the (K, N, D) features of the K layers that `layers` named."""
        return None


class LastLayer(Objective):
    """Standard training: the cross-entropy at the last layer."""

    def weights(self, num_layers: int, step: int | None) -> list[float]:
        return layer_weights("last", num_layers)


class Aligned(Objective):
    """The aligned loss Σ λl CE(W hl, y): one classifier trained at every layer (arXiv 2406.14479).

    With `SeparateHeads` and uniform weights this is the multi-exit baseline.

    Args:
        weights: `linear` (later layers count more, the paper's choice), `uniform`, `last`, or a list of L numbers that
            sum to one. A layer of weight zero is not computed in training.
        sampled_layers: read the last layer and this many of those below, drawn anew each step by their weights, in
            place of all: an unbiased estimate of the loss, and of its gradient, at a fraction of the classifier's cost.
            The draw depends on the step alone, so all processes and micro-batches of a step read the same layers.
            Evaluation reads all.
    """

    def __init__(self, weights: LayerWeights = "linear", sampled_layers: int | None = None) -> None:
        _check_values(weights)
        if sampled_layers is not None and sampled_layers < 1:
            raise UserError(f"Expected sampled_layers of at least 1, but got {sampled_layers}. Leave it out for all.")
        self._weights = weights
        self.sampled_layers = sampled_layers

    def weights(self, num_layers: int, step: int | None) -> list[float]:
        weights = layer_weights(self._weights, num_layers)
        if self.sampled_layers is None or step is None:
            return weights
        return _sampled(weights, self.sampled_layers, step)


def _sampled(weights: list[float], draws: int, step: int) -> list[float]:
    """The last layer's weight, and the others' in equal parts on `draws` layers drawn, with replacement, by weight."""
    *below, last = weights
    if not (rest := fsum(below)):
        return weights
    drawn = torch.multinomial(
        torch.tensor(below, dtype=torch.float64), draws, True, generator=torch.Generator().manual_seed(step)
    )
    counts = torch.bincount(drawn, minlength=len(below))
    return [*(rest * count / draws for count in counts.tolist()), last]


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
        _check_values(weights)
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


class CosineRegularized(Objective):
    """CE(L) + β Σ λl (1 − cos(hl, hL)): the last layer's loss and a pull of all features towards the last's.

    The paper's ablation (arXiv 2406.14479): it makes features alike but teaches shallow layers little.

    Args:
        beta: β ≥ 0.
        weights: the λ of the penalty, as in `Aligned`.
    """

    def __init__(self, beta: float = 1.0, weights: LayerWeights = "linear") -> None:
        _check_values(weights)
        if not (isfinite(beta) and beta >= 0):
            raise UserError(f"Expected beta ≥ 0, but got {beta}.")
        self.beta = beta
        self._weights = weights

    def weights(self, num_layers: int, step: int | None) -> list[float]:
        layer_weights(self._weights, num_layers)  # a list of the wrong length is told here, as in every objective
        return layer_weights("last", num_layers)

    def layers(self, num_layers: int, step: int | None) -> list[int]:
        """All layers: their features enter the penalty."""
        return list(range(num_layers))

    def penalty(self, features: Tensor, num_layers: int) -> Tensor:
        distance = 1 - cosine_similarity(features.float(), features[-1:].float(), dim=-1).mean(dim=1)
        pull = torch.dot(distance, distance.new_tensor(layer_weights(self._weights, num_layers)))
        return self.beta * pull
