"""Nearest neighbours of samples at two layers: how far they overlap, and CKA of them alone. Letters: L and M layers,
N samples, D and D' width."""

import torch
from torch import Tensor

from layersim.similarity.features import Layers, require_whole
from layersim.similarity.layer_pairs import LayerPairs, relation_cosines


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
    return mutual_pairs(k)(features, other)


def mutual_pairs(k: int) -> LayerPairs[Tensor]:
    require_whole("k", k, 1, " neighbour")

    def look(layer: Tensor) -> Tensor | None:
        kernel = _cosine_kernel(layer)
        return None if kernel is None else _nearest(kernel, k)

    # every layer has N k neighbours: the cosine is the share that two have in common
    return LayerPairs(f"mutual k-nearest neighbours with k={k}", k + 2, look, relation_cosines)


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
    return cknna_pairs(k)(features, other)


def cknna_pairs(k: int) -> LayerPairs[Tensor]:
    require_whole("k", k, 1, " neighbour")

    def look(layer: Tensor) -> Tensor | None:
        kernel = _cosine_kernel(layer)
        if kernel is None:
            return None
        local = (kernel - kernel.mean(1, keepdim=True)) * _nearest(kernel, k)
        return local if local.any() else None

    return LayerPairs(f"CKNNA with k={k}", k + 1, look, relation_cosines)


def _cosine_kernel(layer: Tensor) -> Tensor | None:
    """(N, N) cosines of (N, D) features; None where a vector has no direction, or all are the same."""
    largest = layer.abs().amax(1, keepdim=True)
    if (largest == 0).any():
        return None
    units = layer / largest
    units = units / torch.linalg.vector_norm(units, dim=1, keepdim=True)
    return None if torch.equal(units, units[:1].expand_as(units)) else units @ units.mT


def _nearest(kernel: Tensor, k: int) -> Tensor:
    """(N, N) bool: whether j is among the k samples with the largest K_ij, i itself left out."""
    others = kernel.clone().fill_diagonal_(-torch.inf)
    return torch.zeros_like(kernel, dtype=torch.bool).scatter_(1, others.topk(k, dim=1).indices, True)
