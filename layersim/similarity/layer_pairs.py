"""Measures that look at each layer once, then at all pairs of what they found. Letters: L and M layers, N samples, D
width, P orders of the samples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from layersim.precision import full_precision
from layersim.similarity.features import Layers, as_pair, require_samples, warn_undefined

Found = TypeVar("Found")
"""Of N samples; indexed by an order of theirs, (N,), it is that of the samples in this order. Or a relation of them."""

CHUNK = 2**15  # entries of a relation that are multiplied at once: those of all layers fit the cache


@dataclass(frozen=True)
class LayerPairs(Generic[Found]):
    """A measure as two functions: called with (L, N, D) features and `other` (M, N, D'), or the former alone, it gives
    their (L, M) float64 similarity.

    Layers without a finding, or with values that are not finite, have NaN in their row and column, and one UserWarning
    names them. Raises UserError for shapes that do not fit or too few samples.
    """

    measure: str
    """What errors call it."""
    least: int
    """How many samples it needs."""
    look: Callable[[Tensor], Found | None]
    """What a layer, (N, D) in float64 and finite, is to the measure; None where the measure is not defined. Layers come
    divided by a power of two, so that no square leaves the range of numbers: `look` must not mind."""
    compare: Callable[[list[Found], list[Found]], Tensor]
    """The (l, m) similarity of what was found; given the same list twice for one set of features."""

    def __call__(self, features: Layers, other: Layers | None = None) -> Tensor:
        ours, theirs = as_pair(features, other)
        return warn_undefined(self._compared(ours, theirs, self.look, self.compare), ours, theirs)

    def permuted(self, features: Tensor, other: Tensor | None, orders: Tensor) -> Tensor:
        """(P, L, M) with the columns' samples in each of (P, N) orders, from one look at each layer. Of relations of
        every two samples in float32: P N² L (L + 8) operations and 8 N² L bytes."""
        related = self.compare is relation_cosines

        def look(layer: Tensor) -> Any:
            found: Any = self.look(layer)
            return whole(found).float() if related and found is not None else found

        def compare(left: list[Any], right: list[Any]) -> Tensor:
            if related:
                return (permuted_products(left, right, orders) / _roots(left, right)).movedim(0, -1)
            return torch.stack([self.compare(left, [found[order] for found in right]) for order in orders], dim=-1)

        values = self._compared(features, other, look, compare)
        return (values if values.ndim == 3 else values[..., None].expand(*values.shape, len(orders))).movedim(-1, 0)

    @torch.no_grad()
    def _compared(
        self,
        ours: Tensor,
        theirs: Tensor | None,
        look: Callable[[Tensor], Any],
        compare: Callable[[list[Any], list[Any]], Tensor],
    ) -> Tensor:
        """(L, M, …) as `compare` gives it, NaN where a layer was not found."""
        require_samples(ours.shape[1], self.least, self.measure)
        with full_precision(ours.device):
            rows = [_looked_at(layer, look) for layer in ours]
            columns = rows if theirs is None else [_looked_at(layer, look) for layer in theirs]
            left = [found for found in rows if found is not None]
            right = left if theirs is None else [found for found in columns if found is not None]
            shape, device = (len(rows), len(columns)), ours.device
            if not left or not right:
                return torch.full(shape, torch.nan, dtype=torch.float64, device=device)
            values = compare(left, right)
            similarity = torch.full((*shape, *values.shape[2:]), torch.nan, dtype=torch.float64, device=device)
            defined = [torch.tensor([found is not None for found in side]) for side in (rows, columns)]
            similarity[torch.outer(*defined)] = values.flatten(0, 1)
        return similarity


def relation_cosines(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """Σ_i A_i B_i / √(Σ_i A_i² Σ_i B_i²) over all entries, (L, M) float64, of L tensors A and M tensors B of one shape,
    none of them zero: relations of samples, (N, N) or, of each two once, N (N − 1) / 2."""
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=left[0].device)
    for start in range(0, left[0].numel(), CHUNK):
        rows = _parts(left, start)
        total += rows @ (rows if right is left else _parts(right, start)).mT
    return total / (total.diagonal().outer(total.diagonal()).sqrt() if right is left else _roots(left, right))


def permuted_products(left: list[Tensor], right: list[Tensor], orders: Tensor) -> Tensor:
    """Σ_ij A_ij B_π(i)π(j), (P, L, M) float64, of L relations A and M relations B, (N, N), with the samples of B in
    each of (P, N) orders π.

    Numbers of a pair of samples lie side by side for all layers, so that they are fetched together; of symmetric
    relations each pair once.
    """
    samples, (ours, theirs) = orders.shape[1], (torch.stack(side, dim=-1) for side in (left, right))
    half = all(torch.equal(table, table.transpose(0, 1)) for table in (ours, theirs))
    total = torch.zeros(len(orders), len(left), len(right), dtype=torch.float64, device=ours.device)
    step = max(1, CHUNK // 4 // samples)
    for top in range(0, samples, step):
        start = top if half else 0
        rows, columns = slice(top, top + step), slice(start, None)
        block = ours[rows, columns].double()
        if half:
            weights = torch.full(block.shape[:2], 2.0, dtype=block.dtype, device=block.device).triu(1)
            weights.diagonal().fill_(1)
            block *= weights[..., None]
        block = block.flatten(0, 1).mT
        together = max(1, 2 * CHUNK // block.shape[1])
        for these, sums in zip(torch.split(orders, together), torch.split(total, together), strict=True):
            pairs = (these[:, rows, None] * samples + these[:, None, columns]).flatten()
            fetched = theirs.flatten(0, 1).index_select(0, pairs).double()
            sums += block @ fetched.view(len(these), -1, len(right))
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


def _roots(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """(L, M) products of the relations' lengths."""
    starts = range(0, left[0].numel(), CHUNK)
    squares = [torch.stack([_parts(side, start).square().sum(1) for start in starts]).sum(0) for side in (left, right)]
    return torch.outer(*squares).sqrt()


def _parts(relations: list[Tensor], start: int) -> Tensor:
    return torch.stack([relation.flatten()[start : start + CHUNK] for relation in relations]).double()


def whole(relation: Tensor) -> Tensor:
    """A relation as (N, N), with zeros for a sample and itself where each two samples stand once."""
    if relation.ndim == 2:
        return relation
    samples = round((1 + (1 + 8 * len(relation)) ** 0.5) / 2)
    square = relation.new_zeros(samples, samples)
    above = torch.triu_indices(samples, samples, 1, device=relation.device)
    square[above[0], above[1]] = square[above[1], above[0]] = relation
    return square


def _looked_at(layer: Tensor, look: Callable[[Tensor], Found | None]) -> Found | None:
    largest = layer.abs().amax().double()
    if not largest.isfinite() or largest == 0:
        return None
    power_of_two = torch.frexp(largest).mantissa / largest
    return look(layer.double() * power_of_two)
