"""Linear regression from one layer to another. Letters: L and M layers, N samples, D and D' width."""

import torch
from torch import Tensor

from layersim.similarity.cca import LEAST, Subspace, subspace
from layersim.similarity.features import Layers
from layersim.similarity.layer_pairs import LayerPairs


def regression_r2(features: Layers, other: Layers | None = None) -> Tensor:
    """Share of the column's layer's variance that a linear map of the row's layer explains: R² of the fit on all N.

    R²_LR of Kornblith et al. 2019, table 1: ‖UᵀY‖_F² / ‖Y‖_F² with centred features and U an orthonormal basis of what
    the row's layer X spans, that is 1 − min over B of ‖Y − X B‖_F² / ‖Y‖_F². Not symmetric: row l predicts column m.
    Not held out: of unrelated layers it is r / (N − 1), with r the rank of X.

    Args:
        features: (L, N, D) of any floating dtype: a tensor, a NumPy array, or a list of layers (N, D).
        other: (M, N, D') of the same samples, from another model or checkpoint; where None, `features` themselves.

    Returns:
        (L, L) or (L, M) float64 in [0, 1], 1 for a layer against itself. Invariant to each layer's own orthogonal map,
        scale and translation, and to any invertible linear map of the row's. In float64: L (6 N D² + 20 D³) + 2 L² N D²
        FLOPs and 24 L N D + 16 L D² bytes beside the features. A constant layer, or one not finite, has NaN in its row
        and column, and one UserWarning names it.

    Raises:
        UserError: not (L, N, D), numbers of samples that differ, fewer than 3, or as few as a layer's rank + 1 (D + 1
            at most).
    """
    return regression_pairs()(features, other)


def regression_pairs() -> LayerPairs[Subspace]:
    return LayerPairs("regression R²", LEAST, lambda x: subspace(x, "regression R²"), _explained)


def _explained(left: list[Subspace], right: list[Subspace]) -> Tensor:
    targets = torch.stack([found.basis @ found.loadings for found in right])
    targets /= torch.linalg.vector_norm(targets, dim=(1, 2), keepdim=True)
    return torch.stack([(found.basis.mT @ targets).square().sum((1, 2)) for found in left])
