"""Canonical correlations of layers: their mean, of the directions with most variance, and weighed by projection.
Letters: L and M layers, N samples, D and D' width, r and s ranks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from layersim.errors import check_share
from layersim.similarity.features import Layers, TooFewSamples, centred
from layersim.similarity.layer_pairs import LayerPairs, nuclear_norms

LEAST = 3  # samples: what two differ by is one direction, which every layer has


def mean_cca(features: Layers, other: Layers | None = None) -> Tensor:
    """Mean of the canonical correlations: ‖UᵀV‖_* / min(r, s) with orthonormal bases U and V of what the layers span.

    Raghu et al. 2017 (arXiv 1706.05806); ρ̄_CCA of Kornblith et al. 2019, table 1. Of two layers with ranks r and s at
    least r + s − (N − 1) correlations are 1 whatever the data: take N well above D + D', or `svcca`.

    Args:
        features: (L, N, D) of any floating dtype: a tensor, a NumPy array, or a list of layers (N, D).
        other: (M, N, D') of the same samples, from another model or checkpoint; where None, `features` themselves.

    Returns:
        (L, L) or (L, M) float64 in [0, 1], 1 for a layer against itself. Invariant to each layer's own invertible
        linear map and translation. A direction counts however little a layer spreads in it, down to float64's rounding.
        In float64: L (6 N D² + 20 D³) + L² (N D² + 4 D³ / 3) FLOPs and 8 N D (L + 5) bytes beside the features. A
        constant layer, or one not finite, has NaN in its row and column, and one UserWarning names it.

    Raises:
        UserError: not (L, N, D), numbers of samples that differ, or as few as a layer's rank + 1 (D + 1 at most), or
            than 3.
    """
    return cca_pairs()(features, other)


def svcca(features: Layers, other: Layers | None = None, *, variance: float = 0.99) -> Tensor:
    """Mean canonical correlation of the fewest directions that explain a share `variance` of each layer's variance.

    Raghu et al. 2017 (arXiv 1706.05806), who keep 0.99. The mean is over as many correlations as the layer with fewer
    directions has.

    Args:
        features: (L, N, D) of any floating dtype: a tensor, a NumPy array, or a list of layers (N, D).
        other: (M, N, D') of the same samples, from another model or checkpoint; where None, `features` themselves.
        variance: above 0, up to 1.

    Returns:
        (L, L) or (L, M) float64 in [0, 1], 1 for a layer against itself. Invariant to each layer's own orthogonal map,
        scale and translation, not to any linear map. In float64: at most what `mean_cca` takes, less where few
        directions suffice. A constant layer, or one not finite, has NaN in its row and column, and one UserWarning
        names it.

    Raises:
        UserError: a share out of bounds, not (L, N, D), numbers of samples that differ, fewer than 3, or as few as the
            number of directions kept + 1.
    """
    return cca_pairs(variance)(features, other)


def pwcca(features: Layers, other: Layers | None = None) -> Tensor:
    """Mean of the canonical correlations, each weighed by how much of the row's layer its direction accounts for.

    Morcos et al. 2018 (arXiv 1806.05759): Σ α_i ρ_i / Σ α_i with α_i = Σ_j |<h_i, x_j>|, h_i the canonical
    variates and x_j the centred components of the row's layer. Not symmetric: the layer that counts as the row weighs.

    Args:
        features: (L, N, D) of any floating dtype: a tensor, a NumPy array, or a list of layers (N, D).
        other: (M, N, D') of the same samples, from another model or checkpoint; where None, `features` themselves.

    Returns:
        (L, L) or (L, M) float64 in [0, 1], 1 for a layer against itself. Invariant to each layer's own scale and
        translation; to no rotation, as the weights are sums over components. Where correlations are equal, as those of
        directions that two layers share, the weights are not determined by the data. In float64: L (6 N D² + 20 D³) +
        L² (N D² + 11 D³) FLOPs and 8 N D (L + 4) + 8 L D² bytes beside the features. A constant layer, or one not
        finite, has NaN in its row and column, and one UserWarning names it.

    Raises:
        UserError: not (L, N, D), numbers of samples that differ, or no more than two layers' ranks together (D + D' at
            most): then correlations are 1 whatever the data, and their weights undetermined.
    """
    return pwcca_pairs()(features, other)


def cca_pairs(variance: float | None = None) -> "LayerPairs[Subspace]":
    if variance is not None:
        check_share("variance", variance, one=True)
    label = "mean CCA" if variance is None else "SVCCA"
    return LayerPairs(label, LEAST, lambda x: subspace(x, label, variance), _mean_correlations)


def pwcca_pairs() -> "LayerPairs[Subspace]":
    return LayerPairs("PWCCA", LEAST, lambda x: subspace(x, "PWCCA"), _weighted_correlations)


@dataclass(frozen=True)
class Subspace:
    """A layer's centred features X ≈ `basis` @ `loadings`, largest variance first."""

    basis: Tensor
    """(N, r) orthonormal columns."""
    loadings: Tensor
    """(r, D) what each direction adds to the components: diag(singular values) Vᵀ."""

    @property
    def rank(self) -> int:
        """r."""
        return self.basis.shape[1]

    def __getitem__(self, order: Tensor) -> "Subspace":
        """That of the samples in another order."""
        return Subspace(self.basis[order], self.loadings)


def subspace(layer: Tensor, measure: str, variance: float | None = None) -> Subspace | None:
    """The directions that (N, D) float64 features spread in, or the fewest that explain a share `variance` of it.

    A direction counts where its singular value is above max(N, D) · 2⁻⁵² times the largest: below is float64's own
    rounding (as numpy's matrix_rank). None where the features are constant.

    Raises:
        TooFewSamples: it is all that N centred samples can span, so that it explains anything, whatever the data.
    """
    basis, values, directions = torch.linalg.svd(centred(layer, dim=0), full_matrices=False)
    if values[0] == 0:
        return None
    if variance is None:
        rank = int((values > values[0] * max(layer.shape) * torch.finfo(layer.dtype).eps).sum())
    else:
        explained = values.square().cumsum(0)
        rank = 1 + int((explained < variance * explained[-1]).sum())
    if rank >= len(layer) - 1:
        raise TooFewSamples(
            f"{measure} needs at least {rank + 2} samples, and more where D is larger: got {len(layer)}, which a layer "
            f"of rank {rank} fits exactly, so that all values would be 1: measure on more samples (and raise "
            "max_samples if that is what limits them), lower the variance of SVCCA, which says how many directions it "
            "keeps, or choose linear CKA"
        )
    return Subspace(basis[:, :rank], values[:rank, None] * directions[:rank])


def _mean_correlations(left: list[Subspace], right: list[Subspace]) -> Tensor:
    """Mean canonical correlation of all pairs of L and M subspaces, (L, M) float64."""
    rows = [found.basis for found in left]
    columns = rows if right is left else [found.basis for found in right]
    ranks = [torch.tensor([found.rank for found in side], device=rows[0].device) for side in (left, right)]
    return nuclear_norms(rows, columns) / torch.minimum(ranks[0][:, None], ranks[1])


def _weighted_correlations(left: list[Subspace], right: list[Subspace]) -> Tensor:
    weighted = torch.ones(len(left), len(right), dtype=torch.float64, device=left[0].basis.device)
    for row, first in enumerate(left):
        for column, second in enumerate(right):
            if left is right and column <= row:
                continue  # a layer against itself is one; the other half is filled below, from the same decomposition
            together, samples = first.rank + second.rank, len(first.basis)
            # a layer meets itself in its null as well, with its samples in another order
            if together > samples - 1 and first.loadings is not second.loadings:
                raise TooFewSamples(
                    f"PWCCA needs at least {together + 1} samples for two layers of ranks {first.rank} and "
                    f"{second.rank}, got {samples}: with fewer, correlations are 1 whatever the data; measure on more "
                    "samples (and raise max_samples if that is what limits them), or choose SVCCA, which keeps fewer "
                    "directions"
                )
            ours, correlations, theirs = torch.linalg.svd(first.basis.mT @ second.basis, full_matrices=False)
            weighted[row, column] = _weighted(correlations, ours.mT @ first.loadings)
            if left is right:
                weighted[column, row] = _weighted(correlations, theirs @ second.loadings)
    return weighted


def _weighted(correlations: Tensor, loadings: Tensor) -> Tensor:
    """Σ α_i ρ_i / Σ α_i of (r,) correlations, from the (r, D) products of variates and components."""
    weights = loadings.abs().sum(1)
    return (weights @ correlations) / weights.sum()
