"""Temperature scaling, one number a layer, fitted on samples of its own. Letters: L layers, N samples, C classes.

A temperature divides a layer's logits. It changes how sure a layer says it is, never its prediction, and makes scores
of different layers mean the same, so that one threshold can serve them all (Guo et al. 2017, arXiv 1706.04599).
"""

import warnings
from collections.abc import Callable
from functools import partial
from math import isfinite

import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.exits.given import as_targets
from layersim.heads import MAX_LOGITS, Head
from layersim.outputs import LayerFeatures

LEAST, GREATEST = 0.05, 20.0
"""Bounds of a temperature. Where every sample is right the likelihood asks for 0; where logits say nothing, for ∞."""


def split_for_temperatures(num_samples: int, share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sample numbers for the temperatures (share × N of them, rounded) and, apart from them, for the threshold.

    The same samples must not serve both: a promise about a threshold holds for scores that were fixed without them.

    Raises:
        UserError: the share leaves one of the two without samples.
    """
    first = round(share * num_samples) if 0 < share < 1 else 0
    if not 0 < first < num_samples:
        raise UserError(
            f"Expected a share between 0 and 1 that leaves samples for the temperatures and for the threshold, but got "
            f"{share:g} of {num_samples} samples. Change the share, or give more samples."
        )
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
    return order[:first].sort().values, order[first:].sort().values


@torch.no_grad()
def fit_temperatures(head: Head, features: LayerFeatures) -> Tensor:
    """(L,) float64 temperatures of the layers, from (L, N, D) features and their targets.

    Reads the head again for each step of the fit where samples × classes are many, so that the logits of one chunk are
    all that is ever alive.

    Warns:
        UserWarning: a layer's temperature lies at a bound: samples all classified rightly and surely, or logits that
            say less than none.

    Raises:
        UserError: there are no samples, features of other layers than the head's, not one class for each sample, or
            logits that are not finite.
    """
    targets = as_targets(head, features)
    if not len(targets):
        raise UserError("Expected samples with targets to fit temperatures on, but got none. Change the data.")
    chunk = max(1, MAX_LOGITS // head.num_classes)
    like = next(head.parameters())  # features that were collected lie on the host, and under autocast in another dtype

    def fit(layer: int) -> float:
        rows = zip(torch.split(features.values[layer].to(like), chunk), torch.split(targets, chunk), strict=True)
        parts = [(values[None], labels) for values, labels in rows]
        if len(parts) == 1:  # small enough to be read once
            return _fit(partial(_slope, head.logits(parts[0][0], [layer])[0], targets))
        return _fit(lambda beta: sum(_slope(head.logits(one, [layer])[0], own, beta) for one, own in parts))

    temperatures = [fit(layer) for layer in range(head.num_layers)]
    stuck = [f"layer {layer}: {t:g}" for layer, t in enumerate(temperatures, start=1) if t in (LEAST, GREATEST)]
    if stuck:
        warnings.warn(
            f"The best temperature lies at or beyond its bounds {LEAST:g} … {GREATEST:g}, and the bound is used, at "
            f"{', '.join(stuck)}. At {LEAST:g} the samples are all classified rightly and more would tell; at "
            f"{GREATEST:g} the layer's logits say nothing of the targets.",
            stacklevel=2,
        )
    return torch.tensor(temperatures, dtype=torch.float64)


def _slope(logits: Tensor, targets: Tensor, inverse: float) -> float:
    """The derivative of the summed cross-entropy in β = 1 / T: Σ (E[z] − z_y). It only rises."""
    z = logits.double()
    z = z - z.gather(1, targets.unsqueeze(1))  # differences to the target's logit: no cancellation in the slope
    return ((inverse * z).softmax(dim=1) * z).sum().item()


def _fit(slope: Callable[[float], float]) -> float:
    """T in [LEAST, GREATEST] where the slope in 1 / T is zero, to about 1e-9; a bound where that lies beyond it."""
    from scipy.optimize import brentq  # type: ignore[import-untyped]  # slow to import, and seldom needed

    low, high = 1 / GREATEST, 1 / LEAST
    ends = slope(low), slope(high)
    if not (isfinite(ends[0]) and isfinite(ends[1])):
        raise UserError("Expected finite logits to fit a temperature on, but some are not. Check the model.")
    if ends[0] >= 0:
        return GREATEST
    if ends[1] <= 0:
        return LEAST
    return float(1 / brentq(slope, low, high, xtol=1e-12))
