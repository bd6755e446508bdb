"""Centred kernel nearest-neighbour alignment. Letters: L and M layers, N samples, D and D' width."""

import torch
from torch import Tensor

from layersim.similarity.features import Layers
from layersim.similarity.layer_pairs import compare_layers, relation_products
from layersim.similarity.neighbours import cosine_kernel, nearest, require_neighbours
from layersim.similarity.properties import Properties
from layersim.similarity.samples import WholeMetric


def cknna(features: Layers, other: Layers | None = None, *, k: int = 10) -> Tensor:
    """CKA of which only pairs count that are nearest neighbours at both layers (Huh et al. 2024, arXiv 2405.07987).

    Align(K, L) / √(Align(K, K) Align(L, L)) with Align(K, L) = Σ_i Σ_j α_ij (K_ij − mean_l K_il)(L_ij − mean_l L_il),
    α_ij = 1 where j ≠ i is among the k nearest to i at both layers, else 0 (eqs. 16 to 18), and K the inner products of
    features of length one. Their program does something else under the name: HSIC-1 of the kernels that α has masked.

    Args:
        features: (L, N, D) of any floating dtype: a tensor, a NumPy array, or a list of layers (N, D).
        other: (M, N, D') of the same samples, from another model or checkpoint; where None, `features` themselves.
        k: neighbours, without the sample itself. With N − 1 every pair of two samples counts.

    Returns:
        (L, L) or (L, M) float64 in [−1, 1], 1 for a layer against itself. Invariant to each layer's own orthogonal map
        and scale, not to translation. Which of several samples that are equally near counts as the k-th is arbitrary.
        In float64: 2 N² L (D + L) FLOPs and 8 N² (L + 3) bytes beside the features. A layer with a vector of length
        zero, or constant, or not finite, has NaN in its row and column, and one UserWarning names it.

    Raises:
        UserError: k below 1, not (L, N, D), numbers of samples that differ, or fewer than k + 1 samples.
    """
    require_neighbours(k)

    def look(layer: Tensor) -> Tensor | None:
        kernel = cosine_kernel(layer)
        if kernel is None:
            return None
        local = (kernel - kernel.mean(1, keepdim=True)) * nearest(kernel, k)
        length = torch.linalg.vector_norm(local)
        return None if length == 0 else local / length

    return compare_layers(features, other, look, relation_products, least=k + 1, measure=f"CKNNA with k={k}")


class CKNNA(WholeMetric):
    """`cknna` over batches and processes, of `max_samples` samples at most: the value depends on their number."""

    function = staticmethod(cknna)
    label = "CKNNA"
    value_range = (-1, 1)

    def __init__(self, *, k: int = 10, max_samples: int | None = 1024) -> None:
        """See `cknna`.

        Raises:
            UserError: k below 1, or `max_samples` below k + 1.
        """
        require_neighbours(k)
        super().__init__(max_samples=max_samples, least=k + 1, k=k)

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
            bytes=lambda layers, samples, width: 8 * samples**2 * (layers + 3),
        )
