"""Cosine similarity between layers. Letters: L and M layers, N samples, D width."""

from torch import Tensor

from layersim.similarity.directions import Centering, DirectionMetric, mean_comparison
from layersim.similarity.properties import Properties

MEASURE = "cosine"


def cosine(features: Tensor, other: Tensor | None = None, *, centering: Centering = "samples") -> Tensor:
    """Mean over the samples of the cosine between a sample's features at two layers.

    Args:
        features: (L, N, D) of any floating dtype.
        other: (M, N, D) of the same samples, from another model or checkpoint; where None, `features` themselves.
        centering: what is subtracted first: "samples", each layer's mean over the samples (Jiang et al. 2025, COS);
            "components", each vector's mean of its own components (the authors' GPT-2 code); "none". The choice can
            turn a conclusion round. Invariant to an orthogonal map that all layers share and to each layer's positive
            scale; with "samples" also to each layer's translation, with "components" not to orthogonal maps.

    Returns:
        (L, L) or (L, M) float64 in [−1, 1], from float32 products: 2 N L M D FLOPs, and 8 L N D bytes beside the
        features, 12 L N D with centring. A layer with a vector of length zero after centring, or not finite, has NaN in
        its row and column, and one UserWarning names it.

    Raises:
        UserError: an unknown centering, not (L, N, D), widths or numbers of samples that differ, or too few samples (2
            with "samples", else 1).
    """
    return mean_comparison(features, other, centering, _cosines, MEASURE)


class CosineSimilarity(DirectionMetric):
    """`cosine` over batches and processes: the same value whatever the batch size, the order or the split.

    With centering "samples" the features are kept, `max_samples` of them at most: those whose position has the smallest
    hash, so that the choice depends on the data alone. Otherwise sums and counts are all it holds.
    """

    function = staticmethod(cosine)
    measure = MEASURE

    def __init__(self, *, centering: Centering = "samples", max_samples: int | None = None) -> None:
        """See `cosine`.

        Raises:
            UserError: an unknown centering, `max_samples` below 2, or `max_samples` where nothing is kept.
        """
        super().__init__(centering=centering, max_samples=max_samples)

    @staticmethod
    def compare(first: Tensor, second: Tensor) -> Tensor:
        """Cosines of (n, L, D) and (n, M, D) vectors of length one, (n, L, M)."""
        return _cosines(first, second)

    @property
    def properties(self) -> Properties:
        """What the measure promises with these options."""
        return Properties(
            orthogonal="none" if self.centering == "components" else "shared",
            scaling="own",
            linear="none",
            translation="own" if self.centering == "samples" else "none",
            permutation=True,
            range=(-1, 1),
            flops=lambda layers, samples, width: 2 * samples * layers**2 * width,
            bytes=lambda layers, samples, width: (8 if self.centering == "none" else 12) * layers * samples * width,
            equal_widths=True,
        )


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    return first @ second.mT
