"""Cosine similarity and angular distance over batches and processes. Letters: L and M layers, n samples, D width."""

import math

import torch
from torch import Tensor

from layersim.errors import check_choice
from layersim.similarity.directions import (
    CHUNK,
    Centering,
    angle_of,
    angular_distance,
    compared,
    cosine,
    cosine_of,
    directions,
    require_directions,
)
from layersim.similarity.features import Layers, require_equal_widths, warn_undefined
from layersim.similarity.intervals import Interval, jackknife_of_sums
from layersim.similarity.measure import Measure
from layersim.similarity.properties import Properties


class CosineSimilarity(Measure):
    """`cosine` over batches and processes: the same value whatever the batch size, the order or the split.

    With centering "samples" or with `max_samples` the features are kept, so many of them at most: those whose position
    has the smallest hash, so that the choice depends on the data alone. Otherwise sums and counts are all it holds.
    """

    label = "cosine similarity"
    value_range = (-1, 1)
    least = 2
    function = staticmethod(cosine)
    compare = staticmethod(cosine_of)
    keeps_by = "set max_samples, such as 4096"

    def __init__(self, *, centering: Centering = "samples", max_samples: int | None = None) -> None:
        """See `cosine`. Raises UserError for an unknown centering, or `max_samples` below 2."""
        check_choice("centering", centering, Centering)
        self.centering: Centering = centering
        self.arguments = {"centering": centering}
        super().__init__(max_samples=max_samples)

    @property
    def keeps_sample(self) -> bool:
        return self.centering == "samples" or self.max_samples is not None

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
        chunks = directions(batch.features, batch.other, self.centering)
        for chunk, positions in zip(chunks, torch.split(batch.index, CHUNK), strict=True):
            self.add(compared(*chunk, self.compare), positions)

    def compute(self) -> Tensor:
        if self.keeps_sample:
            return super().compute()
        sums, counts = self._sums()
        return warn_undefined(sums.sum(0) / counts.sum())

    def interval_of_state(self, confidence: float) -> Interval:
        """From the groups' sums, or from the kept samples."""
        if self.keeps_sample:
            return super().interval_of_state(confidence)
        return jackknife_of_sums(torch.div, *self._sums(), confidence, "samples")

    def permuted(self, features: Tensor, other: Tensor | None, orders: Tensor) -> Tensor:
        """From inner products of float64 directions: P N L M D multiplications, and 8 N (L + M) D bytes."""
        chunked = zip(*directions(features, other, self.centering), strict=True)
        sides = (torch.cat(chunks, dim=1).transpose(0, 1).double() for chunks in chunked)
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
        require_directions(self.count(), self.centering, self.label)
        return self.added()


class AngularDistance(CosineSimilarity):
    """`angular_distance` over batches and processes: the same value whatever the batch size, the order or the split.

    As `CosineSimilarity`, it keeps features with centering "samples" or `max_samples` alone.
    """

    label = "angular distance"
    value_range = (0, 1)
    identical = 0.0
    function = staticmethod(angular_distance)
    compare = staticmethod(angle_of)

    def __init__(self, *, centering: Centering = "none", max_samples: int | None = None) -> None:
        """See `CosineSimilarity`."""
        super().__init__(centering=centering, max_samples=max_samples)

    @staticmethod
    def of_cosines(cosines: Tensor) -> Tensor:
        return cosines.clamp(-1, 1).arccos() / math.pi  # rounding leads beyond 1
