"""Orthogonal Procrustes similarity. Letters: L and M layers, N samples, D and D' width."""

import torch
from torch import Tensor

from layersim.similarity.features import Layers, centred
from layersim.similarity.layer_pairs import LayerPairs, nuclear_norms

LEAST = 2


def procrustes(features: Layers, other: Layers | None = None) -> Tensor:
    """‖XᵀY‖_* / (‖X‖_F ‖Y‖_F) of centred features: how well the best rotation of one layer fits the other.

    A similarity. The squared distance of Ding et al. 2021, min over rotations R of ‖X − Y R‖_F² with X and
    Y of length one, is 2 − 2 times this; scipy's disparity, whose fit also scales, is 1 less its square.

    Args:
        features: (L, N, D) of any floating dtype: a tensor, a NumPy array, or a list of layers (N, D).
        other: (M, N, D') of the same samples, from another model or checkpoint, the narrower filled up with zeros;
            where None, `features` themselves.

    Returns:
        (L, L) or (L, M) float64 in [0, 1], 1 for a layer against itself. Invariant to each layer's own orthogonal map,
        scale and translation, not to any linear map. In float64, with d the lesser of N and D: L² d² (N + 4 d / 3)
        FLOPs, for each pair one singular value decomposition, and 8 N d (L + 2) bytes beside the features. A
        constant layer, or one not finite, has NaN in its row and column, and one UserWarning names it.

    Raises:
        UserError: not (L, N, D), numbers of samples that differ, or fewer than 2 samples.
    """
    return procrustes_pairs()(features, other)


def procrustes_pairs() -> LayerPairs[Tensor]:
    return LayerPairs("Procrustes similarity", LEAST, _unit_shape, nuclear_norms)


def _unit_shape(layer: Tensor) -> Tensor | None:
    """(N, D) → (N, min(N, D)) centred and of length one; None where it is constant."""
    shape = centred(layer, dim=0)
    length = torch.linalg.vector_norm(shape)
    if length == 0:
        return None
    if shape.shape[1] > len(shape):  # N samples span N dimensions at most: rotated into them, the width is gone
        shape = torch.linalg.qr(shape.mT, mode="r")[1].mT
    return shape / length
