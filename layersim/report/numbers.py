"""Numbers of a record: what is refused as none, and how they are told. Letters: L layers, K thresholds."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from layersim.errors import UserError


def perplexity(losses: Sequence[float]) -> list[float]:
    """(L,) exp of mean cross-entropies in nats a token, such as a record's `loss`; ∞ where that is beyond a float."""
    with np.errstate(over="ignore"):
        return [float(each) for each in np.exp(np.asarray(losses, dtype=np.float64))]


def three(value: float) -> str:
    """A number with three digits behind the point, and with three in all from 10 000 on, as perplexities can be."""
    return f"{value:.3f}" if not abs(value) >= 1e4 else f"{value:.3g}"


def expect_numbers(key: str, value: object, shape: tuple[int, ...], *, counts: bool = False) -> None:
    """Refuses what is not numbers in this shape; counts are whole and not below 0.

    Raises:
        UserError: with the key.
    """
    try:
        array = np.asarray(value)
        got = f"{' × '.join(map(str, array.shape))} of type {array.dtype}" if array.shape else f"{value!r}"
    except ValueError:
        array, got = np.asarray(None), "rows of different lengths"
    kinds, kind = ("i", "whole number") if counts else ("if", "number")
    if array.shape != shape or array.dtype.kind not in kinds or (counts and array.min() < 0):
        expected = f"{' × '.join(map(str, shape))} {kind}s" if shape else f"one {kind}"
        raise UserError(f"{key}: expected {expected}{', 0 or more' if counts else ''}, got {got}.")


def expect_shapes(
    key: str,
    value: object,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    counts: Collection[str] = (),
    others: Collection[str] = (),
) -> None:
    """Refuses what is no mapping that has, under these keys, numbers in these shapes; those in `counts` are whole, and
    under the `others` there may be anything.

    Raises:
        UserError: with the key.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{key}: expected a JSON object, got {value!r}.")
    if absent := [name for name in (*others, *shapes) if name not in value]:
        raise UserError(f"{key}: expected the keys {', '.join((*others, *shapes))}; {', '.join(absent)} absent.")
    for name, shape in shapes.items():
        expect_numbers(f"{key}.{name}", value[name], shape, counts=name in counts)


def expect_curve(key: str, curve: Mapping[str, Any]) -> None:
    """Refuses what is not K thresholds, numbers or None, with K mean exit layers and K accuracies.

    Raises:
        UserError: with the key.
    """
    if absent := [name for name in ("threshold", "mean_exit_layer", "accuracy") if name not in curve]:
        raise UserError(f"{key}: expected threshold, mean_exit_layer and accuracy; {', '.join(absent)} absent.")
    if not isinstance(curve["threshold"], list) or not curve["threshold"]:
        raise UserError(f"{key}.threshold: expected a list of numbers and null, got {curve['threshold']!r}.")
    for threshold in curve["threshold"]:
        if threshold is not None:
            expect_numbers(f"{key}.threshold", threshold, ())
    for name in ("mean_exit_layer", "accuracy"):
        expect_numbers(f"{key}.{name}", curve[name], (len(curve["threshold"]),))
