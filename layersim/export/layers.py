"""Which layers an export keeps. Letters: L layers."""

import math
from collections.abc import Sequence
from itertools import pairwise

from layersim.errors import UserError


def kept_layers(layers: int | Sequence[int], num_layers: int) -> list[int]:
    """The layer numbers 0 … L − 1 that are kept: the first so many, or those that are listed.

    Raises:
        UserError: a count outside 1 … L; a list that is not ascending, leaves 0 … L − 1, or lacks layer 0. The first
            block is always kept: families tie to it what the others do not have (DeBERTa's convolution, ModernBERT's
            missing norm), and no layer features are known before it.
    """
    if isinstance(layers, int):
        if not 1 <= layers <= num_layers:
            raise UserError(f"Expected 1 … {num_layers} layers to keep, but got {layers}. Change --layers.")
        return list(range(layers))
    kept = list(layers)
    if not kept or kept[0] != 0 or kept[-1] >= num_layers or any(b <= a for a, b in pairwise(kept)):
        raise UserError(
            f"Expected ascending layer numbers from 0 to at most {num_layers - 1}, the first being 0, but got {kept}."
        )
    return kept


def fewest_layers(accuracy: Sequence[float], tolerance: float) -> int:
    """The fewest layers, 1 … L, whose accuracy is at most `tolerance` below the last layer's.

    Args:
        accuracy: L layer accuracies, 0 … 1, as `layers.jsonl` holds them.
        tolerance: in the accuracies' units: 0.005 is half a percentage point. Differences are rounded to 12 digits
            first, so that 0.972 − 0.967, which is 0.0050000000000000044 in binary, is within 0.005.

    Raises:
        UserError: no accuracies, one that is not finite, or a tolerance outside 0 … 1.
    """
    if not 0 <= tolerance <= 1:
        raise UserError(f"Expected a tolerance in 0 … 1, but got {tolerance}. Change --tolerance.")
    if not accuracy or not all(map(math.isfinite, accuracy)):
        raise UserError(f"Expected a finite accuracy for each layer, but got {list(accuracy)}.")
    return next(layer for layer, share in enumerate(accuracy, start=1) if round(accuracy[-1] - share, 12) <= tolerance)
