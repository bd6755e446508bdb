"""What cosine and angular distance share: each sample's directions at two layers, compared, and the mean over samples.
Letters: L and M layers, N samples, D width."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.precision import widened
from layersim.similarity.centering import centred
from layersim.similarity.features import Layers, as_pair, require_equal_widths, require_samples, warn_undefined
from layersim.similarity.intervals import Interval, jackknife_of_sums
from layersim.similarity.properties import Properties
from layersim.similarity.samples import WholeMetric

Centering = Literal["none", "samples", "components"]
Comparison = Callable[[Tensor, Tensor], Tensor]
"""(n, L, M) float64 lengths of the differences u − v and the sums u + v of directions → (n, L, M)."""

CHUNK = 128  # samples that are compared at once: their directions fit the cache


def mean_comparison(
    features: Layers, other: Layers | None, centering: Centering, compare: Comparison, measure: str
) -> Tensor:
    """Mean of `compare` over the samples, (L, M) float64, of (L, N, D) features with `other` (M, N, D) or themselves.

    A layer with a vector of length zero after centring, or not finite, has NaN in its row and column, and one
    UserWarning names it. Raises UserError for an unknown centering, shapes that do not fit, or too few samples (2 with
    "samples", else 1).
    """
    require_centering(centering)
    features, other = as_pair(features, other)
    require_equal_widths(features, other, measure)
    require_directions(features.shape[1], centering, measure)
    total = torch.stack([_compared(*chunk, compare).sum(0) for chunk in _directions(features, other, centering)]).sum(0)
    return warn_undefined(total / features.shape[1], features, other)


class DirectionMetric(WholeMetric):
    """A mean over the samples of how a sample's directions at two layers compare, over batches and processes.

    With centering "samples" the features are kept, `max_samples` of them at most: those whose position has the smallest
    hash, so that the choice depends on the data alone. Otherwise sums and counts are all it holds.
    """

    measure: str
    """What errors call it."""
    compare: Comparison

    def __init__(self, *, centering: Centering, max_samples: int | None = None) -> None:
        """See `cosine`.

        Raises:
            UserError: an unknown centering, `max_samples` below 2, or `max_samples` where nothing is kept.
        """
        require_centering(centering)
        if max_samples is not None and centering != "samples":
            raise UserError(
                f'max_samples: centering="{centering}" keeps no samples to cap, got {max_samples}: leave it out'
            )
        super().__init__(max_samples=max_samples, least=2, centering=centering)
        self.centering: Centering = centering

    @property
    def options(self) -> dict[str, Any]:
        """What a run records beside the values."""
        return super().options if self.centering == "samples" else dict(self.arguments)

    @property
    def properties(self) -> Properties:
        """What the measure promises with these options."""
        centred = self.centering == "samples"
        return Properties(
            orthogonal="none" if self.centering == "components" else "shared",
            scaling="own",
            linear="none",
            translation="own" if centred else "none",
            permutation=True,
            flops=lambda layers, samples, width: 3 * samples * layers * (layers + 1) * width,
            bytes=lambda layers, samples, width: 4 * layers * width * (3 * min(samples, CHUNK) + samples * centred),
            equal_widths=True,
        )

    def update(self, features: Layers, index: Tensor | None = None, *, other: Layers | None = None) -> None:
        """Takes (L, n, D) features, their samples' (n,) integer positions in the data set, on the host, and, to compare
        two models, the (M, n, D) features that the `other` has for the same samples.

        Without positions samples are numbered as they come; on several processes give them, or the choice of samples
        and the intervals depend on the split.
        """
        batch = self.admit(features, index, other)
        require_equal_widths(batch.features, batch.other, self.measure)
        if self.centering == "samples":
            self.keep(batch)
            return
        chunks = _directions(batch.features, batch.other, self.centering)
        for chunk, positions in zip(chunks, torch.split(batch.index, CHUNK), strict=True):
            self.add(_compared(*chunk, self.compare), positions)

    def compute(self) -> Tensor:
        """(L, L) or (L, M) float64, as the function on all samples. Raises UserError where too few came."""
        if self.centering == "samples":
            return super().compute()
        require_directions(self.count(), self.centering, self.measure)
        sums, counts = self.added()
        return warn_undefined(_mean(sums.sum(0), counts.sum()))

    def interval_of_state(self, confidence: float) -> Interval:
        """From the groups' sums, or, with centering "samples", from the kept samples."""
        if self.centering == "samples":
            return super().interval_of_state(confidence)
        require_directions(self.count(), self.centering, self.measure)
        return jackknife_of_sums(_mean, *self.added(), confidence, "samples")


def require_centering(centering: str) -> None:
    """Raises UserError where there is no such centering."""
    if centering not in get_args(Centering):
        raise UserError(f'centering: expected one of {", ".join(get_args(Centering))}, got "{centering}"')


def require_directions(came: int, centering: Centering, measure: str) -> None:
    """Raises UserError where too few samples came for the centering."""
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
