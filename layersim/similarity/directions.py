"""Cosine similarity and angular distance: each sample's directions at two layers, compared, and the mean over samples.
Letters: L and M layers, N samples, D width."""

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from layersim.errors import check_choice
from layersim.precision import widened
from layersim.similarity.features import Layers, as_pair, centred, require_equal_widths, require_samples, warn_undefined

Centering = Literal["none", "samples", "components"]
Comparison = Callable[[Tensor, Tensor], Tensor]
"""(n, L, M) float64 lengths of the differences u − v and the sums u + v of directions → (n, L, M)."""

CHUNK = 128  # samples that are compared at once: their directions fit the cache


def cosine(features: Layers, other: Layers | None = None, *, centering: Centering = "samples") -> Tensor:
    """Mean over the samples of the cosine between a sample's features at two layers.

    Args:
        features: (L, N, D) of any floating dtype: a tensor, a NumPy array, or a list of layers (N, D).
        other: (M, N, D) of the same samples, from another model or checkpoint; where None, `features` themselves.
        centering: what is subtracted first: "samples", each layer's mean over the samples (Jiang et al. 2025, COS);
            "components", each vector's mean of its own components (the authors' GPT-2 code); "none". The choice can
            turn a conclusion round. Invariant to an orthogonal map that all layers share and to each layer's positive
            scale; with "samples" also to each layer's translation, with "components" not to orthogonal maps.

    Returns:
        (L, L) or (L, M) float64 in [−1, 1], exactly 1 for equal layers, from float32 differences and sums: 6 N L M D
        FLOPs, half of that for one set, and 1536 L D bytes beside the features, with "samples" 4 L N D more. A layer
        with a vector of length zero after centring, or not finite, has NaN in its row and column, and one UserWarning
        names it.

    Raises:
        UserError: an unknown centering, not (L, N, D), widths or numbers of samples that differ, or too few samples (2
            with "samples", else 1).
    """
    return _mean_comparison(features, other, centering, "cosine similarity", cosine_of)


def angular_distance(features: Layers, other: Layers | None = None, *, centering: Centering = "none") -> Tensor:
    """Mean over the samples of arccos(cosine) / π between a sample's features at two layers.

    Gromov et al. 2024 (arXiv 2403.17887), who take it at the last token and leave out the layers that it finds
    closest. The angle is 2 atan2(‖u − v‖, ‖u + v‖) of the directions u and v (Kahan 2006), which keeps its digits where
    arccos loses half of them: between neighbouring layers.

    Args:
        features: (L, N, D) of any floating dtype: a tensor, a NumPy array, or a list of layers (N, D).
        other: (M, N, D) of the same samples, from another model or checkpoint; where None, `features` themselves.
        centering: what is subtracted first, as in `cosine`; "none" as published. Invariant to what `cosine` is.

    Returns:
        (L, L) or (L, M) float64 in [0, 1], a distance: 0 for the same direction, ½ for a right angle, 1 for the
        opposite. At `cosine`'s cost, from float32 differences and sums. A layer with a vector of length zero, or
        not finite, has NaN in its row and column, and one UserWarning names it.

    Raises:
        UserError: an unknown centering, not (L, N, D), widths or numbers of samples that differ, or too few samples (2
            with "samples", else 1).
    """
    return _mean_comparison(features, other, centering, "angular distance", angle_of)


def cosine_of(apart: Tensor, together: Tensor) -> Tensor:
    """‖u + v‖² − ‖u − v‖² = 4 <u, v>, over their sum: exactly 1 for equal directions, and never more."""
    apart, together = apart.square(), together.square()
    return (together - apart) / (together + apart)


def angle_of(apart: Tensor, together: Tensor) -> Tensor:
    """In units of π, from the lengths of differences and sums."""
    return torch.atan2(apart, together) * (2 / math.pi)


def _mean_comparison(
    features: Layers, other: Layers | None, centering: Centering, measure: str, compare: Comparison
) -> Tensor:
    check_choice("centering", centering, Centering)
    features, other = as_pair(features, other)
    require_equal_widths(features, other, measure)
    require_directions(features.shape[1], centering, measure)
    chunks = directions(features, other, centering)
    total = torch.stack([compared(*chunk, compare).sum(0) for chunk in chunks]).sum(0)
    return warn_undefined(total / features.shape[1], features, other)


def require_directions(came: int, centering: Centering, measure: str) -> None:
    require_samples(came, 2 if centering == "samples" else 1, f'{measure} with centering="{centering}"')


@torch.no_grad()
def directions(features: Tensor, other: Tensor | None, centering: Centering) -> Iterator[tuple[Tensor, Tensor]]:
    """(L, n, D) and (M, n, D) vectors of length one, CHUNK samples at a time; without `other`, the same ones twice."""
    # sums in one order, however the features lie in memory
    sets = [widened(layers).contiguous() for layers in (features, other) if layers is not None]
    sets = [centred(layers, dim=1) for layers in sets] if centering == "samples" else sets
    for chunk in zip(*(torch.split(layers, CHUNK, dim=1) for layers in sets), strict=True):
        units = [_of_length_one(vectors, centering) for vectors in chunk]
        yield units[0], units[-1]


def _of_length_one(vectors: Tensor, centering: Centering) -> Tensor:
    """(L, n, D) → (L, n, D); NaN where a vector has no direction."""
    if centering == "components":
        vectors = centred(vectors, dim=2)
    # the largest component first: squares of very large or small numbers leave float32's range
    units = vectors / vectors.abs().amax(dim=2, keepdim=True)
    return units.div_(torch.linalg.vector_norm(units, dim=2, keepdim=True))


@torch.no_grad()
def compared(first: Tensor, second: Tensor, compare: Comparison) -> Tensor:
    """(n, L, M) float64. A sample's own values do not depend on its batch.

    Angles come from differences and sums, not from inner products, whose rounding leads beyond 1 and loses what is
    small; of one set of layers each pair is looked at once.
    """
    apart = first.new_empty(first.shape[1], len(first), len(second), dtype=torch.float64)
    together = torch.empty_like(apart)
    room = torch.empty_like(second, dtype=torch.result_type(first, second))
    for row, vectors in enumerate(first):
        start = row if second is first else 0
        for chords, sign in ((apart, -1), (together, 1)):
            ends = torch.add(second[start:], vectors, alpha=sign, out=room[start:])
            chords[:, row, start:] = lengths = torch.linalg.vector_norm(ends, dim=2).mT
            if second is first:
                chords[:, start:, row] = lengths
    return compare(apart, together)
