"""Mean canonical correlation. Letters: L and M layers, N samples, D and D' width, r and s ranks."""

import torch
from torch import Tensor

from layersim.similarity.features import Layers
from layersim.similarity.layer_pairs import compare_layers, nuclear_norms
from layersim.similarity.properties import Properties
from layersim.similarity.samples import WholeMetric
from layersim.similarity.subspace import Subspace, require_room, subspace

MEASURE = "mean CCA"
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
    return compare_layers(
        features,
        other,
        lambda layer: require_room(subspace(layer), MEASURE),
        mean_correlations,
        least=LEAST,
        measure=MEASURE,
    )


class MeanCCA(WholeMetric):
    """`mean_cca` over batches and processes, of `max_samples` samples at most."""

    function = staticmethod(mean_cca)
    label = "mean CCA"
    value_range = (0, 1)

    def __init__(self, *, max_samples: int | None = 4096) -> None:
        """See `mean_cca`.

        Raises:
            UserError: `max_samples` below 3.
        """
        super().__init__(max_samples=max_samples, least=LEAST)

    @property
    def properties(self) -> Properties:
        """What the measure promises."""
        return Properties(
            orthogonal="own",
            scaling="own",
            linear="own",
            translation="own",
            permutation=True,
            flops=lambda layers, samples, width: (
                layers * (6 * samples + 20 * width) * width**2 + layers**2 * (samples + 4 / 3 * width) * width**2
            ),
            bytes=lambda layers, samples, width: 8 * samples * width * (layers + 5),
        )


def mean_correlations(left: list[Subspace], right: list[Subspace]) -> Tensor:
    """Mean canonical correlation of all pairs of L and M subspaces, (L, M) float64."""
    rows = [found.basis for found in left]
    columns = rows if right is left else [found.basis for found in right]
    ranks = [torch.tensor([found.rank for found in side], device=rows[0].device) for side in (left, right)]
    return nuclear_norms(rows, columns) / torch.minimum(ranks[0][:, None], ranks[1])
