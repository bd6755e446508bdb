"""Effective depth: how many layers a task needs. Letters: L layers, N samples."""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, Literal

import torch
from torch import Tensor

from layersim.errors import check_share

EPSILON = 0.01
CONFIDENCE = 0.95


def effective_depth(
    accuracy: Sequence[float] | Tensor, epsilon: float = EPSILON, *, of: float | None = None
) -> int | None:
    """The first layer, counted from 1, whose accuracy is within ε of the best layer's.

    Differences are rounded to 12 digits first, so that 0.972 − 0.967, 0.0050000000000000044 in binary, is within 0.005.
    NaN is within ε of nothing, and never the best.

    Args:
        accuracy: (L,) layer accuracies.
        epsilon: in the accuracies' units, 0 … 1: 0.01 is one sample of a hundred.
        of: what to be within ε of, in place of the best: 1 gives the absolute depth of arXiv 2406.14479, the first
            layer whose accuracy is at least 1 − ε.

    Returns:
        None where no layer gets there: none by an absolute ε, or all accuracies NaN.

    Raises:
        UserError: ε outside 0 … 1.
    """
    check_share("epsilon", epsilon, zero=True, one=True)
    shares = torch.as_tensor(accuracy, dtype=torch.float64).tolist()
    top = max((share for share in shares if not math.isnan(share)), default=math.nan) if of is None else of
    return next((layer for layer, share in enumerate(shares, 1) if round(top - share - epsilon, 12) <= 0), None)


def paired_interval(more: int, less: int, samples: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two accuracies on the same N samples, of which `more` are right by the
    first alone and `less` by the second alone.

    Agresti and Min's (2005): Wald's, with half a sample more of each of the four kinds, so that two layers that agree
    on all of a few samples may yet differ. It takes samples as independent.
    """
    total = samples + 2
    difference = (more - less) / total
    error = math.sqrt(((more + less + 1) / total - difference**2) / total)
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * error
    return difference - half, difference + half


def measured_depth(
    right: Tensor,
    samples: int,
    epsilon: float | Literal["interval"] = EPSILON,
    absolute_epsilon: float | None = None,
    *,
    independent: bool = True,
) -> dict[str, Any]:
    """The effective depth with what stands behind it.

    `layer` and the `epsilon` it was found with, the `best` layer, how far the layer is `behind` it in accuracy, and
    `low` and `high`, that difference's 95 % interval on the same samples; `absolute_epsilon` and, where a layer gets
    there, `absolute_layer`.

    Args:
        right: (L, L) as `RightAtBoth` counts.
        samples: N, 1 or more.
        epsilon: see `effective_depth`; or `interval`, the first layer whose interval reaches 0.
        absolute_epsilon: adds the first layer whose accuracy is at least 1 − ε.
        independent: whether the samples are, which the tokens of one text are not: no interval follows of them.
    """
    correct = right.diagonal().tolist()
    shares = [count / samples for count in correct]
    best = shares.index(max(shares)) + 1
    both = right[best - 1].tolist()
    pairs = zip(correct, both, strict=True)
    ends = [paired_interval(correct[best - 1] - agree, count - agree, samples) for count, agree in pairs]
    ends[best - 1] = (0.0, 0.0)  # no chance in what a layer is behind itself
    if epsilon == "interval":
        layer = next(place for place, (low, _) in enumerate(ends, 1) if low <= 0)
    else:
        layer = effective_depth(shares, epsilon) or best
    told = {"epsilon": epsilon, "layer": layer, "best": best, "behind": shares[best - 1] - shares[layer - 1]}
    if independent:
        told |= dict(zip(("low", "high"), ends[layer - 1], strict=True))
    if absolute_epsilon is not None:
        told["absolute_epsilon"] = absolute_epsilon
        if (reached := effective_depth(shares, absolute_epsilon, of=1.0)) is not None:
            told["absolute_layer"] = reached
    return told
