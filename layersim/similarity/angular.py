"""Angular distance between layers. Letters: L and M layers, N samples, D width."""

import math

import torch
from torch import Tensor

from layersim.similarity.directions import Centering, DirectionMetric, mean_comparison
from layersim.similarity.features import Layers

MEASURE = "angular distance"


def _angles(apart: Tensor, together: Tensor) -> Tensor:
    return torch.atan2(apart, together) * (2 / math.pi)


def angular_distance(features: Layers, other: Layers | None = None, *, centering: Centering = "none") -> Tensor:
    """Mean over the samples of arccos(cosine) / π between a sample's features at two layers.

    Gromov et al. 2024 (arXiv 2403.17887), who take it at the last token and leave out the layers that it finds
    closest. The angle is 2 atan2(‖u − v‖, ‖u + v‖) of the directions u and v (Kahan 2006), which keeps its digits where
    arccos loses half of them: between neighbouring layers.

    Args:
        features: (L, N, D) of any floating dtype: a tensor, a NumPy array, or a list of layers (N, D).
        other: (M, N, D) of the same samples, from another model or checkpoint; where None, `features` themselves.
        centering: what is subtracted first, as in `cosine`; "none" as published. Invariant to what `cosine` is.

    Returns:
        (L, L) or (L, M) float64 in [0, 1], a distance: 0 for the same direction, ½ for a right angle, 1 for the
        opposite. At `cosine`'s cost, from float32 differences and sums. A layer with a vector of length zero, or
        not finite, has NaN in its row and column, and one UserWarning names it.

    Raises:
        UserError: an unknown centering, not (L, N, D), widths or numbers of samples that differ, or too few samples (2
            with "samples", else 1).
    """
    return mean_comparison(features, other, centering, _angles, MEASURE)


class AngularDistance(DirectionMetric):
    """`angular_distance` over batches and processes: the same value whatever the batch size, the order or the split.

    As `CosineSimilarity`, it keeps features with centering "samples" alone.
    """

    function = staticmethod(angular_distance)
    label = "angular distance"
    value_range = (0, 1)
    measure = MEASURE
    compare = staticmethod(_angles)
    identical = 0.0

    def __init__(self, *, centering: Centering = "none", max_samples: int | None = None) -> None:
        """See `angular_distance`.

        Raises:
            UserError: an unknown centering, `max_samples` below 2, or `max_samples` where nothing is kept.
        """
        super().__init__(centering=centering, max_samples=max_samples)
