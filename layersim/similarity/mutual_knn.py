"""Overlap of nearest neighbours. Letters: L and M layers, N samples, D and D' width."""

from torch import Tensor

from layersim.similarity.features import Layers, as_features
from layersim.similarity.layer_pairs import compare_layers, relation_products
from layersim.similarity.neighbours import cosine_kernel, nearest, require_neighbours
from layersim.similarity.properties import Properties
from layersim.similarity.samples import WholeMetric


def mutual_knn(features: Layers, other: Layers | None = None, *, k: int = 10) -> Tensor:
    """Mean over the samples of the share of its k nearest neighbours at one layer that are so at the other as well.

    Huh et al. 2024 (arXiv 2405.07987): (1 / k) |S(φ_i) ∩ S(ψ_i)|, neighbours by the largest inner product of
    features of length one, that is by cosine, as in their program.

    Args:
        features: (L, N, D) of any floating dtype: a tensor, a NumPy array, or a list of layers (N, D).
        other: (M, N, D') of the same samples, from another model or checkpoint; where None, `features` themselves.
        k: neighbours, without the sample itself.

    Returns:
        (L, L) or (L, M) float64 in [0, 1], 1 for a layer against itself; unrelated layers have k / (N − 1). Invariant
        to each layer's own orthogonal map and scale, not to translation. Which of several samples that are equally near
        counts as the k-th is arbitrary. In float64: 2 N² L (D + L) FLOPs and N² (L + 17) bytes beside the features. A
        layer with a vector of length zero, or constant, or not finite, has NaN in its row and column, and one
        UserWarning names it.

    Raises:
        UserError: k below 1, not (L, N, D), numbers of samples that differ, or fewer than k + 2 samples: with k + 1
            everybody is everybody's neighbour.
    """
    require_neighbours(k)
    features = as_features(features)

    def look(layer: Tensor) -> Tensor | None:
        kernel = cosine_kernel(layer)
        return None if kernel is None else nearest(kernel, k)

    overlap = compare_layers(
        features, other, look, relation_products, least=k + 2, measure=f"mutual k-nearest neighbours with k={k}"
    )
    return overlap / (features.shape[1] * k)


class MutualKNN(WholeMetric):
    """`mutual_knn` over batches and processes, of `max_samples` samples at most: the value depends on their number."""

    function = staticmethod(mutual_knn)
    label = "mutual nearest neighbours"
    value_range = (0, 1)

    def __init__(self, *, k: int = 10, max_samples: int | None = 1024) -> None:
        """See `mutual_knn`.

        Raises:
            UserError: k below 1, or `max_samples` below k + 2.
        """
        require_neighbours(k)
        super().__init__(max_samples=max_samples, least=k + 2, k=k)

    @property
    def properties(self) -> Properties:
        """What the measure promises with these options."""
        return Properties(
            orthogonal="own",
            scaling="own",
            linear="none",
            translation="none",
            permutation=True,
            flops=lambda layers, samples, width: 2 * samples**2 * layers * (width + layers),
            bytes=lambda layers, samples, width: samples**2 * (layers + 17),
        )
