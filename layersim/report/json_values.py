"""Values as JSON has them: text, numbers, lists and objects of them, and null for a number that there is none of."""

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any


def plain(value: Any) -> Any:
    """The same with lists for arrays and tensors, and Python's own numbers for any others, the nearest float64 of each;
    what JSON has no word for stays."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [item if type(item) is float else plain(item) for item in value]
    if isinstance(value, Real) and not isinstance(value, bool):
        return int(value) if isinstance(value, Integral) else float(value)
    return plain(value.tolist()) if hasattr(value, "tolist") else value


def is_plain(value: Any) -> bool:
    """Whether JSON has a word for it, null for NaN and infinity."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    return all(map(is_plain, value)) if isinstance(value, list) else isinstance(value, str | int | float | None)


def each_of(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same with whatever dictionaries and lists hold, however nested, changed."""
    if isinstance(value, dict):
        return {key: each_of(item, change) for key, item in value.items()}
    return [each_of(item, change) for item in value] if isinstance(value, list | tuple) else change(value)


def without_nan(value: Any) -> Any:
    """The same with null for what JSON has no word for."""
    return each_of(value, lambda one: None if isinstance(one, float) and not math.isfinite(one) else one)


def with_nan(value: Any) -> Any:
    """The same with NaN for null."""
    return each_of(value, lambda one: math.nan if one is None else one)
