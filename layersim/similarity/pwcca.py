"""Projection-weighted canonical correlation. Letters: L and M layers, N samples, D and D' width, r rank."""

import torch
from torch import Tensor

from layersim.similarity.features import Layers, TooFewSamples
from layersim.similarity.layer_pairs import compare_layers
from layersim.similarity.mean_cca import LEAST
from layersim.similarity.properties import Properties
from layersim.similarity.samples import WholeMetric
from layersim.similarity.subspace import Subspace, require_room, subspace

MEASURE = "PWCCA"


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
    return compare_layers(
        features,
        other,
        lambda layer: require_room(subspace(layer), MEASURE),
        _weighted_correlations,
        least=LEAST,
        measure=MEASURE,
    )


class PWCCA(WholeMetric):
    """`pwcca` over batches and processes, of `max_samples` samples at most."""

    function = staticmethod(pwcca)
    label = "PWCCA"
    value_range = (0, 1)

    def __init__(self, *, max_samples: int | None = 4096) -> None:
        """See `pwcca`.

        Raises:
            UserError: `max_samples` below 3.
        """
        super().__init__(max_samples=max_samples, least=LEAST)

    @property
    def properties(self) -> Properties:
        """What the measure promises."""
        return Properties(
            orthogonal="none",
            scaling="own",
            linear="none",
            translation="own",
            permutation=True,
            flops=lambda layers, samples, width: (
                layers * (6 * samples + 20 * width) * width**2 + layers**2 * (samples + 11 * width) * width**2
            ),
            bytes=lambda layers, samples, width: 8 * samples * width * (layers + 4) + 8 * layers * width**2,
            symmetric=False,
        )


def _weighted_correlations(left: list[Subspace], right: list[Subspace]) -> Tensor:
    weighted = torch.ones(len(left), len(right), dtype=torch.float64, device=left[0].basis.device)
    for row, first in enumerate(left):
        for column, second in enumerate(right):
            if left is right and column <= row:
                continue  # a layer against itself is one; the other half is filled below, from the same decomposition
            _require_room_for_both(first, second)
            ours, correlations, theirs = torch.linalg.svd(first.basis.mT @ second.basis, full_matrices=False)
            weighted[row, column] = _weighted(correlations, ours.mT @ first.loadings)
            if left is right:
                weighted[column, row] = _weighted(correlations, theirs @ second.loadings)
    return weighted


def _weighted(correlations: Tensor, loadings: Tensor) -> Tensor:
    """Σ α_i ρ_i / Σ α_i of (r,) correlations, from the (r, D) products of variates and components."""
    weights = loadings.abs().sum(1)
    return (weights @ correlations) / weights.sum()


def _require_room_for_both(first: Subspace, second: Subspace) -> None:
    together, samples = first.rank + second.rank, len(first.basis)
    if together > samples - 1:
        raise TooFewSamples(
            f"{MEASURE} needs at least {together + 1} samples for two layers of ranks {first.rank} and {second.rank}, "
            f"got {samples}: with fewer, correlations are 1 whatever the data; measure on more samples (and raise "
            "max_samples if that is what limits them), or choose SVCCA, which keeps fewer directions"
        )
