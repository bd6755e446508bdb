"""How far two similarity measures say the same of a model's layers. Letter: L layers."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from layersim.errors import UserError


@dataclass(frozen=True)
class Agreement:
    """Correlation over the pairs of layers l < m, −1 … 1; NaN where it is undefined."""

    pearson: float
    spearman: float
    """Pearson's of the ranks, equal values sharing their mean rank."""


def agreement(first: Tensor, second: Tensor) -> Agreement:
    """How the (L, L) similarities by one measure go with those by another (Jiang et al. 2025, arXiv 2406.14479, compare
    COS with CKA so).

    Each pair of layers counts once, no layer's with itself. NaN with fewer than two pairs, where all pairs of a matrix
    are equal, or where one is not finite.

    Raises:
        UserError: not two L × L matrices.
    """
    if first.ndim != 2 or first.shape[0] != first.shape[1] or first.shape != second.shape:
        raise UserError(f"Expected two L × L matrices, but got shapes {tuple(first.shape)} and {tuple(second.shape)}.")
    from scipy import stats  # type: ignore[import-untyped]  # slow to import, and seldom needed

    rows, columns = torch.triu_indices(len(first), len(first), offset=1)
    pairs = [matrix.double().cpu()[rows, columns].numpy() for matrix in (first, second)]
    if not all(math.isfinite(values.sum()) and len(set(values)) > 1 for values in pairs):
        return Agreement(math.nan, math.nan)
    return Agreement(float(stats.pearsonr(*pairs).statistic), float(stats.spearmanr(*pairs).statistic))
