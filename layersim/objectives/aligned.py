"""The aligned loss, and standard training."""

from math import fsum

import numpy as np
import torch

from layersim.errors import at_least
from layersim.objectives.base import WeightedSum
from layersim.objectives.reading import Step, weighted_layers
from layersim.objectives.weights import LayerWeights, checked_weights, layer_weights


class LastLayer(WeightedSum):
    """Standard training: the cross-entropy at the last layer."""

    def weights(self, num_layers: int, step: Step | None) -> list[float]:
        return layer_weights("last", num_layers)


class Aligned(WeightedSum):
    """The aligned loss Σ λl CE(W hl, y): one classifier trained at every layer (arXiv 2406.14479).

    With `SeparateHeads` and uniform weights this is the multi-exit baseline.

    Args:
        weights: `linear` (later layers count more, the paper's choice), `uniform`, `last`, or L numbers that sum to one
            (a list, an array or a tensor). A layer of weight zero is not computed in training.
        sampled_layers: read the last layer and this many of those below, drawn anew each step by their weights, in
            place of all: an unbiased estimate of the loss, and of its gradient, at a fraction of the classifier's cost.
            The draw depends on the step and the run's seed alone, so all processes and micro-batches of a step read the
            same layers. Evaluation reads all.
    """

    def __init__(self, weights: LayerWeights = "linear", sampled_layers: int | None = None) -> None:
        super().__init__()
        self._weights = checked_weights(weights)
        if sampled_layers is not None:
            sampled_layers = at_least(1, "--model.objective.sampled_layers", sampled_layers)
        self.sampled_layers = sampled_layers

    def weights(self, num_layers: int, step: Step | None) -> list[float]:
        weights = layer_weights(self._weights, num_layers)
        if self.sampled_layers is None or step is None:
            return weights
        return _sampled(weights, self.sampled_layers, step)

    def choices(self, num_layers: int) -> list[list[int]]:
        every = weighted_layers(layer_weights(self._weights, num_layers))
        if self.sampled_layers is None:
            return [every]
        below = [layer for layer in every if layer < num_layers - 1]
        return [[layer, *every[len(below) :]] for layer in below] or [every]  # every draw may be of the same layer


def _sampled(weights: list[float], draws: int, step: Step) -> list[float]:
    """The last layer's weight, and the others' in equal parts on `draws` layers drawn, with replacement, by weight."""
    *below, last = weights
    if not (rest := fsum(below)):
        return weights
    # a sequence mixes both: of their sum, step 1 of seed 0 would be step 0 of seed 1
    seeds = np.random.SeedSequence([step.seed, step.number]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(seeds[0]))
    drawn = torch.multinomial(torch.tensor(below, dtype=torch.float64), draws, True, generator=generator)
    counts = torch.bincount(drawn, minlength=len(below))
    return [*(rest * count / draws for count in counts.tolist()), last]
