"""Cosine similarity between layers. Letters: L and M layers, N samples, D width."""

from torch import Tensor

from layersim.similarity.directions import Centering, DirectionMetric, mean_comparison
from layersim.similarity.features import Layers

MEASURE = "cosine"


def _cosines(apart: Tensor, together: Tensor) -> Tensor:
    """‖u + v‖² − ‖u − v‖² = 4 <u, v>, over their sum: exactly 1 for equal directions, and never more."""
    apart, together = apart.square(), together.square()
    return (together - apart) / (together + apart)


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
    return mean_comparison(features, other, centering, _cosines, MEASURE)


class CosineSimilarity(DirectionMetric):
    """`cosine` over batches and processes: the same value whatever the batch size, the order or the split.

    With centering "samples" the features are kept, `max_samples` of them at most: those whose position has the smallest
    hash, so that the choice depends on the data alone. Otherwise sums and counts are all it holds.
    """

    function = staticmethod(cosine)
    label = "cosine similarity"
    value_range = (-1, 1)
    measure = MEASURE
    compare = staticmethod(_cosines)

    def __init__(self, *, centering: Centering = "samples", max_samples: int | None = None) -> None:
        """See `cosine`.

        Raises:
            UserError: an unknown centering, `max_samples` below 2, or `max_samples` where nothing is kept.
        """
        super().__init__(centering=centering, max_samples=max_samples)
