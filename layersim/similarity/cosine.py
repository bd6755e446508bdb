"""Cosine similarity between layers. Letters: L layers, N samples, D width."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.similarity.centering import centred
from layersim.similarity.features import require_features, require_samples, warn_undefined, widened
from layersim.similarity.precision import full_precision
from layersim.similarity.samples import SampleMetric

Centering = Literal["none", "samples", "components"]

CHUNK = 1024  # samples whose (L, L) cosines are held at once


def cosine(features: Tensor, *, centering: Centering = "samples") -> Tensor:
    """Mean over the samples of the cosine between a sample's features at two layers.

    Args:
        features: (L, N, D) of any floating dtype.
        centering: what is subtracted first: "samples", each layer's mean over the samples (Jiang et al. 2025, COS);
            "components", each vector's mean of its own components (the authors' GPT-2 code); "none". The choice can
            turn a conclusion round. Invariant to an orthogonal map that all layers share and to each layer's positive
            scale; with "samples" also to each layer's translation.

    Returns:
        (L, L) float64 in [−1, 1]. A layer with a vector of length zero after centring, or not finite, has NaN in its
        row and column, and one UserWarning names it.

    Raises:
        UserError: an unknown centering, not (L, N, D), or too few samples (2 with "samples", else 1).
    """
    _check(centering)
    require_features(features)
    samples = features.shape[1]
    require_samples(samples, 2 if centering == "samples" else 1, f'cosine with centering="{centering}"')
    return warn_undefined(_cosine_sum(features, centering) / samples)


class CosineSimilarity(SampleMetric):
    """`cosine` over batches and processes: the same value whatever the batch size, the order or the split.

    With centering "samples" the features are kept, `max_samples` of them at most: those whose position has the smallest
    hash, so that the choice depends on the data alone. Otherwise sums and counts are all it holds.
    """

    def __init__(self, *, centering: Centering = "samples", max_samples: int | None = None) -> None:
        """See `cosine`.

        Raises:
            UserError: an unknown centering, `max_samples` below 2, or `max_samples` where nothing is kept.
        """
        _check(centering)
        if max_samples is not None and centering != "samples":
            raise UserError(
                f'max_samples: centering="{centering}" keeps no samples to cap, got {max_samples}: leave it out'
            )
        if max_samples is not None and max_samples < 2:
            raise UserError(f"max_samples: expected at least 2, got {max_samples}")
        super().__init__(max_samples=max_samples)
        self.centering: Centering = centering

    @property
    def options(self) -> dict[str, Any]:
        """What a run records beside the values."""
        capped = {"max_samples": self.max_samples} if self.centering == "samples" else {}
        return {"centering": self.centering, **capped}

    def update(self, features: Tensor, index: Tensor | None = None) -> None:
        """Takes (L, n, D) features and their samples' (n,) integer positions in the data set, on the host.

        Without positions samples are numbered as they come; with `max_samples` on several processes give them, or the
        choice of samples depends on the split.
        """
        features, index = self.admit(features, index)
        if self.centering == "samples":
            self.keep(features, index)
        else:
            self.add(_cosine_sum(features, self.centering))

    def compute(self) -> Tensor:
        """(L, L) float64, as `cosine` on all samples. Raises UserError where too few came."""
        if self.centering == "samples":
            return cosine(self.kept()[0], centering="samples")
        require_samples(self.count(), 1, f'cosine with centering="{self.centering}"')
        return warn_undefined(self.total() / self.count())


def _check(centering: str) -> None:
    if centering not in get_args(Centering):
        raise UserError(f'centering: expected one of {", ".join(get_args(Centering))}, got "{centering}"')


@torch.no_grad()
def _cosine_sum(features: Tensor, centering: Centering) -> Tensor:
    """Σ over the samples of the cosines, (L, L) float64. A sample's own cosines do not depend on its batch."""
    layers = len(features)
    total = torch.zeros(layers, layers, dtype=torch.float64, device=features.device)
    features = widened(features).contiguous()  # sums in one order, however the features lie in memory
    if centering == "samples":
        features = centred(features, dim=1)
    with full_precision(features.device):
        for vectors in torch.split(features, CHUNK, dim=1):
            if centering == "components":
                vectors = centred(vectors, dim=2)
            # the largest component first: squares of very large or small numbers leave float32's range
            units = vectors / vectors.abs().amax(dim=2, keepdim=True)
            units = (units / torch.linalg.vector_norm(units, dim=2, keepdim=True)).transpose(0, 1)  # (n, L, D)
            total += (units @ units.mT).double().sum(0)
    return total
