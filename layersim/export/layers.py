"""Which layers an export keeps. Letters: L layers."""

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
