"""Angular distance between layers. Letters: L and M layers, N samples, D width."""

import math

import torch
from torch import Tensor

from layersim.similarity.directions import Centering, DirectionMetric, mean_comparison
from layersim.similarity.properties import Properties

MEASURE = "angular distance"


def angular_distance(features: Tensor, other: Tensor | None = None, *, centering: Centering = "none") -> Tensor:
    """Mean over the samples of arccos(cosine) / π between a sample's features at two layers.

    Gromov et al. 2024 (arXiv 2403.17887), who take it at the last token and leave out the layers that it finds
    closest. The angle is 2 atan2(‖u − v‖, ‖u + v‖) of the directions u and v (Kahan 2006), which keeps its digits where
    arccos loses half of them: between neighbouring layers.

    Args:
        features: (L, N, D) of any floating dtype.
        other: (M, N, D) of the same samples, from another model or checkpoint; where None, `features` themselves.
        centering: what is subtracted first, as in `cosine`; "none" as published. Invariant to what `cosine` is.

    Returns:
        (L, L) or (L, M) float64 in [0, 1], a distance: 0 for the same direction, ½ for a right angle, 1 for the
        opposite. From float32 differences: 6 N L M D FLOPs, and 16 L N D bytes beside the features. A layer with a
        vector of length zero, or not finite, has NaN in its row and column, and one UserWarning names it.

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
    measure = MEASURE

    def __init__(self, *, centering: Centering = "none", max_samples: int | None = None) -> None:
        """See `angular_distance`.

        Raises:
            UserError: an unknown centering, `max_samples` below 2, or `max_samples` where nothing is kept.
        """
        super().__init__(centering=centering, max_samples=max_samples)

    @staticmethod
    def compare(first: Tensor, second: Tensor) -> Tensor:
        """Angles / π of (n, L, D) and (n, M, D) vectors of length one, (n, L, M)."""
        return _angles(first, second)

    @property
    def properties(self) -> Properties:
        """What the measure promises with these options."""
        return Properties(
            orthogonal="none" if self.centering == "components" else "shared",
            scaling="own",
            linear="none",
            translation="own" if self.centering == "samples" else "none",
            permutation=True,
            range=(0, 1),
            flops=lambda layers, samples, width: 6 * samples * layers**2 * width,
            bytes=lambda layers, samples, width: 16 * layers * samples * width,
            identical=0.0,
            equal_widths=True,
        )


def _angles(first: Tensor, second: Tensor) -> Tensor:
    exact = "donot_use_mm_for_euclid_dist"  # the other way subtracts squares, and loses what is small
    apart = torch.cdist(first, second, compute_mode=exact)
    together = torch.cdist(first, -second, compute_mode=exact)
    # in float64, as float32's arctangent rounds the last few of a batch in its own way
    return torch.atan2(apart.double(), together.double()) * (2 / math.pi)
