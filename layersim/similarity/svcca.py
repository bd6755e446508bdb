"""Singular vector canonical correlation. Letters: L and M layers, N samples, D and D' width."""

from torch import Tensor

from layersim.errors import UserError
from layersim.similarity.features import Layers
from layersim.similarity.layer_pairs import compare_layers
from layersim.similarity.mean_cca import LEAST, mean_correlations
from layersim.similarity.properties import Properties
from layersim.similarity.samples import WholeMetric
from layersim.similarity.subspace import require_room, subspace

MEASURE = "SVCCA"


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
    _check(variance)
    return compare_layers(
        features,
        other,
        lambda layer: require_room(subspace(layer, variance), MEASURE),
        mean_correlations,
        least=LEAST,
        measure=MEASURE,
    )


class SVCCA(WholeMetric):
    """`svcca` over batches and processes, of `max_samples` samples at most."""

    function = staticmethod(svcca)
    label = "SVCCA"
    value_range = (0, 1)

    def __init__(self, *, variance: float = 0.99, max_samples: int | None = 4096) -> None:
        """See `svcca`.

        Raises:
            UserError: a share out of bounds, or `max_samples` below 3.
        """
        _check(variance)
        super().__init__(max_samples=max_samples, least=LEAST, variance=variance)

    @property
    def properties(self) -> Properties:
        """What the measure promises; the cost is that of keeping all directions."""
        return Properties(
            orthogonal="own",
            scaling="own",
            linear="none",
            translation="own",
            permutation=True,
            flops=lambda layers, samples, width: (
                layers * (6 * samples + 20 * width) * width**2 + layers**2 * (samples + 4 / 3 * width) * width**2
            ),
            bytes=lambda layers, samples, width: 8 * samples * width * (layers + 5),
        )


def _check(variance: float) -> None:
    if not 0 < variance <= 1:
        raise UserError(f"variance: expected a share above 0, up to 1, got {variance}")
