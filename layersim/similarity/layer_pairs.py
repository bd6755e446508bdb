"""Measures that look at each layer once, then at all pairs of what they found. Letters: L and M layers, N samples, D
width."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from layersim.precision import full_precision
from layersim.similarity.features import Layers, as_pair, require_samples, warn_undefined

Found = TypeVar("Found")

CHUNK = 2**15  # entries of a relation that are multiplied at once: those of all layers fit the cache


@torch.no_grad()
def compare_layers(
    features: Layers,
    other: Layers | None,
    look: Callable[[Tensor], Found | None],
    compare: Callable[[list[Found], list[Found]], Tensor],
    *,
    least: int,
    measure: str,
) -> Tensor:
    """(L, M) float64 similarity of (L, N, D) features with `other` (M, N, D') or, where that is None, with themselves.

    Args:
        look: what a layer, (N, D) in float64 and finite, is to the measure; None where the measure is not defined.
            Layers come divided by a power of two, so that no square leaves the range of numbers: `look` must not mind.
        compare: the (l, m) similarity of what was found; given the same list twice for one set of features.
        least: how many samples the measure needs.
        measure: what errors call it.

    Layers without a finding, or with values that are not finite, have NaN in their row and column, and one UserWarning
    names them. Raises UserError for shapes that do not fit or too few samples.
    """
    features, other = as_pair(features, other)
    require_samples(features.shape[1], least, measure)
    with full_precision(features.device):
        rows = [_looked_at(layer, look) for layer in features]
        columns = rows if other is None else [_looked_at(layer, look) for layer in other]
        left = [found for found in rows if found is not None]
        right = left if other is None else [found for found in columns if found is not None]
        similarity = torch.full((len(rows), len(columns)), torch.nan, dtype=torch.float64, device=features.device)
        if left and right:
            defined = [torch.tensor([found is not None for found in side]) for side in (rows, columns)]
            similarity[torch.outer(*defined)] = compare(left, right).flatten()
    return warn_undefined(similarity, features, other)


def relation_products(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """Σ_i A_i B_i over all entries, (L, M) float64, of L tensors A and M tensors B of one shape, such as (N, N)."""
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=left[0].device)
    for start in range(0, left[0].numel(), CHUNK):
        rows = _parts(left, start)
        total += rows @ (rows if right is left else _parts(right, start)).mT
    return total


def nuclear_norms(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """Sum of the singular values of AᵀB, (L, M) float64, of L matrices A (N, r) and M matrices B (N, s).

    A singular value decomposition has no faster batched form on a processor, and ranks differ from layer to layer: one
    pair at a time, each once.
    """
    norms = torch.zeros(len(left), len(right), dtype=torch.float64, device=left[0].device)
    for row, first in enumerate(left):
        for column, second in enumerate(right):
            if left is right and column < row:
                norms[row, column] = norms[column, row]
            else:
                norms[row, column] = torch.linalg.svdvals(first.mT @ second).sum()
    return norms


def _parts(relations: list[Tensor], start: int) -> Tensor:
    return torch.stack([relation.flatten()[start : start + CHUNK] for relation in relations]).double()


def _looked_at(layer: Tensor, look: Callable[[Tensor], Found | None]) -> Found | None:
    largest = layer.abs().amax().double()
    if not largest.isfinite() or largest == 0:
        return None
    power_of_two = torch.frexp(largest).mantissa / largest
    return look(layer.double() * power_of_two)
