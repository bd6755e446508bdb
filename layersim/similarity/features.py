"""What a measure demands of the features, does to them first, and says when a layer cannot be measured.
Letters: L and M layers, N samples, D and D' width."""

import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from layersim.errors import UserError, as_user_error, is_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Layers = Tensor | NDArray[Any] | Sequence[Tensor | NDArray[Any]]
else:
    Layers = Any
"""(L, N, D): a tensor, a NumPy array, or a list of L layers (N, D), each one or the other."""


class TooFewSamples(UserError):
    """A measure is not defined for so few samples."""


def as_features(given: Layers, name: str = "features") -> Tensor:
    """(L, N, D) floating-point numbers, as one tensor.

    Raises:
        UserError: they are nothing of the kind.
    """
    if isinstance(given, list | tuple) and given:
        features = _stacked([_as_tensor(layer, f"{name}: layer {n}") for n, layer in enumerate(given, 1)], name)
    else:
        features = _as_tensor(given, name)
    if features.ndim != 3 or (features.shape[1] and not features.numel()):
        raise UserError(f"{name}: expected (L, N, D), layers first, got shape {tuple(features.shape)}")
    return features


def as_pair(features: Layers, other: Layers | None) -> tuple[Tensor, Tensor | None]:
    """(L, N, D) features, and where there is an `other`, its (M, N, D') features of the same samples.

    Raises:
        UserError: they are nothing of the kind, differ in N, or lie on different devices.
    """
    ours = as_features(features)
    if other is None:
        return ours, None
    theirs = as_features(other, "other")
    if theirs.shape[1] != ours.shape[1]:
        raise UserError(
            f"other: expected the same {ours.shape[1]} samples as features, in the same order, got {theirs.shape[1]}"
        )
    if theirs.device != ours.device:
        raise UserError(f"other: expected {ours.device}, where features are, got {theirs.device}: move either by .to()")
    return ours, theirs


def _as_tensor(given: object, name: str) -> Tensor:
    np = sys.modules.get("numpy")  # nobody without it has an array of it
    if np is not None and isinstance(given, np.ndarray):
        with as_user_error(f"{name}: torch cannot read this array", "Convert it by .astype(np.float32)"):
            given = torch.from_numpy(np.require(given, requirements=("C", "W")))
    if not isinstance(given, Tensor):
        raise UserError(
            f"{name}: expected a tensor or a NumPy array (L, N, D), or a list of layers (N, D), got "
            f"{type(given).__name__}"
        )
    if not given.is_floating_point():
        raise UserError(f"{name}: expected a floating-point tensor, got {given.dtype}: convert it by .float()")
    if given.is_nested or given.layout != torch.strided or given.dtype.itemsize == 1:
        raise UserError(f"{name}: expected a plain tensor of 16 bits or more, got {given.dtype}, {given.layout}")
    return given


def _stacked(layers: list[Tensor], name: str) -> Tensor:
    for what, found in (("shape", [tuple(layer.shape) for layer in layers]), ("device", [x.device for x in layers])):
        if len(set(found)) > 1:
            raise UserError(
                f"{name}: expected layers of one {what}, got {', '.join(map(str, dict.fromkeys(found)))}: compare "
                "layers that differ two at a time, features=[one], other=[the other]"
            )
    return torch.stack(layers)


def require_equal_widths(features: Tensor, other: Tensor | None, measure: str) -> None:
    """Raises UserError where two sets of features differ in width though the measure compares their components."""
    if other is not None and other.shape[2] != features.shape[2]:
        raise UserError(
            f"{measure} compares component by component and needs equal widths, got {features.shape[2]} and "
            f"{other.shape[2]}: choose a measure that is invariant to rotation, as linear CKA is"
        )


def require_whole(option: str, value: object, least: int, why: str = "") -> None:
    """Raises UserError for an option that is no whole number, or below the `least`; `why` says what for."""
    whole = is_whole(value)
    if not whole or value < least:  # type: ignore[operator]
        raise UserError(
            f"{option}: expected {'' if whole else 'a whole number of '}at least {least}{why}, got {value!r}"
        )


def require_samples(came: int, needed: int, measure: str) -> None:
    """Raises TooFewSamples where fewer samples came than the measure is defined for."""
    if came < needed:
        raise TooFewSamples(f"{measure} needs at least {needed} samples, got {came}: use more data or another option")


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


def centred(values: Tensor, dim: int, out: Tensor | None = None) -> Tensor:
    """`values` less their mean along `dim`, as a tensor of the same shape and dtype: a new one, or `out`.

    The first entry is subtracted before the mean is taken: equal entries become exactly zero, and a mean far from zero
    eats no digits.
    """
    residual = torch.sub(values, values.narrow(dim, 0, 1), out=out)
    return residual.sub_(residual.mean(dim, keepdim=True))
