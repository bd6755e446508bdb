"""Centred kernel alignment with Gaussian kernels. Letters: L and M layers, N samples, D and D' width."""

from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from layersim.errors import UserError, check_choice
from layersim.similarity.features import Layers
from layersim.similarity.hsic import centred_kernel
from layersim.similarity.layer_pairs import LayerPairs, relation_cosines, whole
from layersim.similarity.linear_cka import LEAST

RBFEstimator = Literal["biased", "debiased"]


def rbf_cka(
    features: Layers,
    other: Layers | None = None,
    *,
    bandwidth: float = 1.0,
    estimator: RBFEstimator = "biased",
) -> Tensor:
    """HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) with K_ij = exp(−‖x_i − x_j‖² / 2σ²) (Kornblith et al. 2019, section 3).

    σ is `bandwidth` times the median of the layer's N (N − 1) / 2 distances, so that the kernel has no scale.

    Args:
        features: (L, N, D) of any floating dtype: a tensor, a NumPy array, or a list of layers (N, D).
        other: (M, N, D') of the same samples, from another model or checkpoint; where None, `features` themselves.
        bandwidth: σ in units of the median distance. Kornblith et al. report 0.2, 0.4 and 0.8.
        estimator: "biased", tr(K H L H), as published; "debiased", the unbiased HSIC-1 (Song et al. 2012, eq. 5).

    Returns:
        (L, L) or (L, M) float64, 1 for a layer against itself, in [0, 1] with "biased" and [−1, 1] with "debiased".
        Invariant to each layer's own orthogonal map, scale and translation, not to any linear map. In float64:
        N² L (3 D / 2 + 2 L) FLOPs and 8 N² (L + 3) bytes beside the features. A layer of which half the pairs or more
        are the same point, or not finite, has NaN in its row and column, and one UserWarning names it.

    Raises:
        UserError: an unknown estimator, a bandwidth that is not positive, not (L, N, D), numbers of samples that
            differ, or too few samples (2 for "biased", 4 for "debiased").
    """
    return rbf_pairs(bandwidth, estimator)(features, other)


def rbf_pairs(bandwidth: float, estimator: RBFEstimator) -> LayerPairs[Tensor]:
    check_choice("estimator", estimator, RBFEstimator)
    bandwidth = bandwidth.item() if isinstance(bandwidth, Tensor) and bandwidth.ndim == 0 else bandwidth
    if not isinstance(bandwidth, Real) or not 0 < float(bandwidth) < torch.inf:
        raise UserError(f"bandwidth: expected a positive number of median distances, got {bandwidth!r}")

    def look(layer: Tensor) -> Tensor | None:
        distances = torch.pdist(layer)
        # of an even number torch's median is the lower of the two in the middle
        sigma = bandwidth * (distances.median() - distances.neg().median()) / 2
        return None if sigma == 0 else _kernel(distances / sigma, estimator)

    return LayerPairs(f'RBF CKA with estimator="{estimator}"', LEAST[estimator], look, relation_cosines)


def _kernel(distances: Tensor, estimator: str) -> Tensor | None:
    """(N, N) centred kernel, from the N (N − 1) / 2 distances in units of σ; None where it is zero."""
    similar = torch.expm1(-distances.square() / 2)  # less one everywhere, as centring takes it off
    if estimator == "debiased":
        similar -= similar[0].clone()  # where no diagonal counts any other number may go as well: equal ones leave zero
    kernel = centred_kernel(whole(similar), unbiased=estimator == "debiased")
    return kernel if kernel.any() else None
