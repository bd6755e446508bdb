"""What a measure demands of the features, and what it says when a layer cannot be measured. Letters: L and M layers,
N samples, D and D' width."""

import warnings

import torch
from torch import Tensor

from layersim.errors import UserError


def require_features(features: Tensor, name: str = "features") -> None:
    """Raises UserError where `features` are not (L, N, D) floating-point numbers."""
    if features.ndim != 3:
        raise UserError(f"{name}: expected (L, N, D), layers first, got shape {tuple(features.shape)}")
    if not features.is_floating_point():
        raise UserError(f"{name}: expected a floating-point tensor, got {features.dtype}")


def require_pair(features: Tensor, other: Tensor | None) -> None:
    """Raises UserError where `features` are not (L, N, D), or `other`, if given, not (M, N, D') with the same N."""
    require_features(features)
    if other is None:
        return
    require_features(other, "other")
    if other.shape[1] != features.shape[1]:
        raise UserError(
            f"other: expected the same {features.shape[1]} samples as features, in the same order, got {other.shape[1]}"
        )


def require_equal_widths(features: Tensor, other: Tensor | None, measure: str) -> None:
    """Raises UserError where two sets of features differ in width though the measure compares their components."""
    if other is not None and other.shape[2] != features.shape[2]:
        raise UserError(
            f"{measure} compares component by component and needs equal widths, got {features.shape[2]} and "
            f"{other.shape[2]}: choose a measure that is invariant to rotation, as linear CKA is"
        )


def require_samples(came: int, needed: int, measure: str) -> None:
    """Raises UserError where fewer samples came than the measure is defined for."""
    if came < needed:
        raise UserError(f"{measure} needs at least {needed} samples, got {came}: use more data or another option")


def warn_undefined(similarity: Tensor, features: Tensor | None = None, other: Tensor | None = None) -> Tensor:
    """Hands the (L, M) similarity on, and warns once if layers have NaN against all others: nothing is filled in.

    The warning counts the values that are not finite, where the `features` that were measured are given.
    """
    missing = similarity.isnan()
    rows, columns = missing.all(1), missing.all(0)
    if not rows.any() and not columns.any():
        return similarity
    paired = other is not None or len(rows) != len(columns) or not torch.equal(rows, columns)
    if missing.all() and paired:
        blame = "every layer of features or every layer of other"
    elif paired:
        sides = [_named(rows, features, " of features"), _named(columns, other, " of other")]
        blame = " and ".join(filter(None, sides))
    else:
        blame = _named(rows, features, "")
    warnings.warn(
        f"similarity is NaN for {blame}: the features there are constant, zero where a direction is needed, equally "
        "far apart where distances are ranked, or not finite",
        UserWarning,
        stacklevel=3,
    )
    return similarity


def _named(undefined: Tensor, features: Tensor | None, side: str) -> str:
    """'layer 3, 5 of other (counted from 1), with 2 values that are not finite in layer 5', or '' where none is."""
    layers = undefined.nonzero().flatten().tolist()
    if not layers:
        return ""
    broken = {} if features is None else {layer + 1: int((~features[layer].isfinite()).sum()) for layer in layers}
    counts = [f"{count} values that are not finite in layer {layer}" for layer, count in broken.items() if count]
    named = f"layer {', '.join(str(layer + 1) for layer in layers)}{side} (counted from 1)"
    return f"{named}, with {', '.join(counts)}" if counts else named
