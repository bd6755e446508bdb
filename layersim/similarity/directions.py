"""Cosine similarity and angular distance: each sample's directions at two layers, compared, and the mean over samples.
Letters: L and M layers, N samples, D width."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.precision import widened
from layersim.similarity.features import Layers, as_pair, centred, require_equal_widths, require_samples, warn_undefined
from layersim.similarity.intervals import Interval, jackknife_of_sums
from layersim.similarity.measure import Measure
from layersim.similarity.properties import Properties

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
    return _mean_comparison(features, other, centering, CosineSimilarity)


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
    return _mean_comparison(features, other, centering, AngularDistance)


class CosineSimilarity(Measure):
    """`cosine` over batches and processes: the same value whatever the batch size, the order or the split.

    With centering "samples" or with `max_samples` the features are kept, so many of them at most: those whose position
    has the smallest hash, so that the choice depends on the data alone. Otherwise sums and counts are all it holds.
    """

    label = "cosine similarity"
    value_range = (-1, 1)
    least = 2
    function = staticmethod(cosine)
    keeps_by = "set max_samples, such as 4096"

    def __init__(self, *, centering: Centering = "samples", max_samples: int | None = None) -> None:
        """See `cosine`. Raises UserError for an unknown centering, or `max_samples` below 2."""
        require_centering(centering)
        super().__init__(max_samples=max_samples)
        self.arguments = {"centering": centering}
        self.centering: Centering = centering

    @staticmethod
    def compare(apart: Tensor, together: Tensor) -> Tensor:
        """‖u + v‖² − ‖u − v‖² = 4 <u, v>, over their sum: exactly 1 for equal directions, and never more."""
        apart, together = apart.square(), together.square()
        return (together - apart) / (together + apart)

    @property
    def keeps_sample(self) -> bool:
        return self.centering == "samples" or self.max_samples is not None

    @property
    def options(self) -> dict[str, Any]:
        return super().options if self.keeps_sample else dict(self.arguments)

    @property
    def properties(self) -> Properties:
        return Properties(
            orthogonal="none" if self.centering == "components" else "shared",
            translation="own" if self.centering == "samples" else "none",
            equal_widths=True,
        )

    def update(self, features: Layers, index: Tensor | None = None, *, other: Layers | None = None) -> None:
        batch = self.admitted(features, index, other)
        require_equal_widths(batch.features, batch.other, self.label)
        if self.keeps_sample:
            self.keep(batch)
            return
        chunks = _directions(batch.features, batch.other, self.centering)
        for chunk, positions in zip(chunks, torch.split(batch.index, CHUNK), strict=True):
            self.add(_compared(*chunk, self.compare), positions)

    def compute(self) -> Tensor:
        if self.keeps_sample:
            return super().compute()
        sums, counts = self._sums()
        return warn_undefined(_mean(sums.sum(0), counts.sum()))

    def interval_of_state(self, confidence: float) -> Interval:
        """From the groups' sums, or from the kept samples."""
        if self.keeps_sample:
            return super().interval_of_state(confidence)
        return jackknife_of_sums(_mean, *self._sums(), confidence, "samples")

    def permuted(self, features: Tensor, other: Tensor | None, orders: Tensor) -> Tensor:
        """From inner products of float64 directions: P N L M D multiplications, and 8 N (L + M) D bytes."""
        require_equal_widths(features, other, self.label)
        _require_directions(features.shape[1], self.centering, self.label)
        directions = zip(*_directions(features, other, self.centering), strict=True)
        sides = (torch.cat(chunks, dim=1).transpose(0, 1).double() for chunks in directions)
        # of float32's length, whose error arccos would enlarge
        ours, theirs = (side / torch.linalg.vector_norm(side, dim=2, keepdim=True) for side in sides)
        total: Tensor = ours.new_zeros(len(orders), len(features), theirs.shape[1])
        for rows, places in zip(torch.split(ours, CHUNK), torch.split(orders, CHUNK, dim=1), strict=True):
            for sums, order in zip(total, places, strict=True):
                sums += self.of_cosines(rows @ theirs[order].mT).sum(0)
        return total.div_(len(ours))

    @staticmethod
    def of_cosines(cosines: Tensor) -> Tensor:
        return cosines

    def _sums(self) -> tuple[Tensor, Tensor]:
        _require_directions(self.count(), self.centering, self.label)
        return self.added()


class AngularDistance(CosineSimilarity):
    """`angular_distance` over batches and processes: the same value whatever the batch size, the order or the split.

    As `CosineSimilarity`, it keeps features with centering "samples" or `max_samples` alone.
    """

    label = "angular distance"
    value_range = (0, 1)
    identical = 0.0
    function = staticmethod(angular_distance)

    def __init__(self, *, centering: Centering = "none", max_samples: int | None = None) -> None:
        """See `CosineSimilarity`."""
        super().__init__(centering=centering, max_samples=max_samples)

    @staticmethod
    def compare(apart: Tensor, together: Tensor) -> Tensor:
        return torch.atan2(apart, together) * (2 / math.pi)

    @staticmethod
    def of_cosines(cosines: Tensor) -> Tensor:
        return cosines.clamp(-1, 1).arccos() / math.pi  # rounding leads beyond 1


def require_centering(centering: str) -> None:
    """Raises UserError where there is no such centering."""
    if centering not in get_args(Centering):
        raise UserError(f'centering: expected one of {", ".join(get_args(Centering))}, got "{centering}"')


def _mean_comparison(
    features: Layers, other: Layers | None, centering: Centering, kind: type[CosineSimilarity]
) -> Tensor:
    require_centering(centering)
    features, other = as_pair(features, other)
    require_equal_widths(features, other, kind.label)
    _require_directions(features.shape[1], centering, kind.label)
    chunks = _directions(features, other, centering)
    total = torch.stack([_compared(*chunk, kind.compare).sum(0) for chunk in chunks]).sum(0)
    return warn_undefined(total / features.shape[1], features, other)


def _require_directions(came: int, centering: Centering, measure: str) -> None:
    require_samples(came, 2 if centering == "samples" else 1, f'{measure} with centering="{centering}"')


@torch.no_grad()
def _directions(features: Tensor, other: Tensor | None, centering: Centering) -> Iterator[tuple[Tensor, Tensor]]:
    """(L, n, D) and (M, n, D) vectors of length one, CHUNK samples at a time; without `other`, the same ones twice."""
    sets = [_centred_layers(layers, centering) for layers in (features, other) if layers is not None]
    for chunk in zip(*(torch.split(layers, CHUNK, dim=1) for layers in sets), strict=True):
        directions = [_of_length_one(vectors, centering) for vectors in chunk]
        yield directions[0], directions[-1]


def _centred_layers(features: Tensor, centering: Centering) -> Tensor:
    features = widened(features).contiguous()  # sums in one order, however the features lie in memory
    return centred(features, dim=1) if centering == "samples" else features


def _of_length_one(vectors: Tensor, centering: Centering) -> Tensor:
    """(L, n, D) → (L, n, D); NaN where a vector has no direction."""
    if centering == "components":
        vectors = centred(vectors, dim=2)
    # the largest component first: squares of very large or small numbers leave float32's range
    units = vectors / vectors.abs().amax(dim=2, keepdim=True)
    return units.div_(torch.linalg.vector_norm(units, dim=2, keepdim=True))


@torch.no_grad()
def _compared(first: Tensor, second: Tensor, compare: Comparison) -> Tensor:
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


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return total / count
