"""Representational similarity analysis. Letters: L and M layers, N samples, D and D' width."""

from typing import Literal

import torch
from torch import Tensor

from layersim.errors import check_choice
from layersim.similarity.features import Layers, centred
from layersim.similarity.layer_pairs import LayerPairs, relation_cosines

Distance = Literal["euclidean", "correlation"]

LEAST = 3  # samples: two have one distance, which has no rank among others


def rsa(features: Layers, other: Layers | None = None, *, distance: Distance = "euclidean") -> Tensor:
    """Spearman's correlation of two layers' N (N − 1) / 2 distances between samples (Kriegeskorte et al. 2008).

    Args:
        features: (L, N, D) of any floating dtype: a tensor, a NumPy array, or a list of layers (N, D).
        other: (M, N, D') of the same samples, from another model or checkpoint; where None, `features` themselves.
        distance: "euclidean"; or "correlation", 1 − Pearson's correlation of two samples' components, as published.

    Returns:
        (L, L) or (L, M) float64 in [−1, 1], 1 for a layer against itself. Equal distances share their mean rank.
        Invariant to each layer's own scale and, with "euclidean", to its orthogonal map and translation. In float64:
        N² L (3 D / 2 + L) FLOPs, a sort of N² / 2 distances a layer, and 4 N² (L + 9) bytes beside the features. A
        layer whose samples are all equally far apart, or whose features are not finite, has NaN in its row and column,
        and one UserWarning names it; so has one with a sample of equal components, with "correlation".

    Raises:
        UserError: an unknown distance, not (L, N, D), numbers of samples that differ, or fewer than 3 samples.
    """
    return rsa_pairs(distance)(features, other)


def rsa_pairs(distance: Distance) -> LayerPairs[Tensor]:
    check_choice("distance", distance, Distance)

    def look(layer: Tensor) -> Tensor | None:
        if distance == "correlation":
            layer = centred(layer, dim=1)
            layer = layer / torch.linalg.vector_norm(layer, dim=1, keepdim=True)
            if not layer.isfinite().all():
                return None
        # of unit vectors ½‖u − v‖² is 1 − their correlation: the same ranks
        _, group, sizes = torch.unique(torch.pdist(layer), return_inverse=True, return_counts=True)
        ranks = centred(_mean_ranks(sizes)[group], dim=0)
        return ranks if ranks.any() else None

    return LayerPairs("RSA", LEAST, look, relation_cosines)


def _mean_ranks(sizes: Tensor) -> Tensor:
    """The mean of the ranks that groups of (G,) sizes take up, one after the other, in float64."""
    return sizes.cumsum(0) - (sizes.double() - 1) / 2
