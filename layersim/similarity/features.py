"""What a measure demands of the features, and what it says when a layer cannot be measured. Letters: L layers,
N samples, D width."""

import warnings

import torch
from torch import Tensor

from layersim.errors import UserError


def require_features(features: Tensor) -> None:
    """Raises UserError where `features` are not (L, N, D) floating-point numbers."""
    if features.ndim != 3:
        raise UserError(f"features: expected (L, N, D), layers first, got shape {tuple(features.shape)}")
    if not features.is_floating_point():
        raise UserError(f"features: expected a floating-point tensor, got {features.dtype}")


def widened(features: Tensor) -> Tensor:
    """Features as the measures compute with them: half precision as float32, exactly; float64 as it is."""
    return features if features.dtype == torch.float64 else features.float()


def require_samples(came: int, needed: int, measure: str) -> None:
    """Raises UserError where fewer samples came than the measure is defined for."""
    if came < needed:
        raise UserError(f"{measure} needs at least {needed} samples, got {came}: use more data or another option")


def warn_undefined(similarity: Tensor) -> Tensor:
    """Hands the (L, L) similarity on, and warns once if layers have NaN against themselves: nothing is filled in."""
    layers = [str(layer + 1) for layer in similarity.diagonal().isnan().nonzero().flatten().tolist()]
    if layers:
        warnings.warn(
            f"similarity is NaN for layer {', '.join(layers)} (counted from 1): the features there are constant, "
            "zero where a direction is needed, or not finite",
            UserWarning,
            stacklevel=3,
        )
    return similarity
