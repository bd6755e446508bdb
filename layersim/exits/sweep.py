"""All thresholds tried on a table, from the most cautious down. Letters: L layers, N samples, K thresholds."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import inf

import torch
from torch import Tensor

from layersim.errors import UserError


def sweep(scores: Tensor, thresholds: Sequence[float]) -> Iterator[tuple[float | None, Tensor]]:
    """Each threshold with the layers where the samples leave, (N,) as `exit_layer` gives them; K + 1 pairs.

    First None, with which nobody leaves before the last layer, then the thresholds from the greatest to the least: each
    step lets samples leave earlier or where they did.

    What this saves against K calls of `exit_layer` is that a step touches only the samples that change.

    Args:
        scores: (L, N) a policy's, first layer first.
        thresholds: ascending, float32 numbers as `Policy.thresholds` gives them.
    """
    last, num_samples = scores.shape[0] - 1, scores.shape[1]
    surest = torch.where(scores.isnan(), -inf, scores)[:last].double().cummax(dim=0).values  # NaN never leaves
    # The number of thresholds that a sample has reached by a layer; it leaves there where this layer is the first to.
    reached = torch.searchsorted(torch.tensor(thresholds, dtype=torch.float64), surest, right=True)
    grows = reached.diff(dim=0, prepend=reached.new_zeros(1, num_samples)) > 0
    layer, sample = grows.nonzero(as_tuple=True)
    order = reached[grows].argsort(descending=True)
    layer, sample = layer[order], sample[order]
    steps = torch.bincount(reached[grows], minlength=len(thresholds) + 1).flip(0)[: len(thresholds)].tolist()
    exits = torch.full((num_samples,), last)
    yield None, exits.clone()
    changes = zip(torch.split(layer, steps), torch.split(sample, steps), strict=True)
    for threshold, (layers, samples) in zip(reversed(thresholds), changes, strict=True):
        exits[samples] = layers
        yield threshold, exits.clone()


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Refuses, with a UserError, thresholds that are none or not ascending."""
    if not thresholds or any(not lower < upper for lower, upper in pairwise(thresholds)):
        raise UserError(f"Expected thresholds to choose from, each above the one before, but got {list(thresholds)}.")
