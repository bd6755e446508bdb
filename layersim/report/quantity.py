"""What a monitor measured: numbers with the axes they run over, and how they are to be read.

Records, tables, figures, pages, loggers and comparisons are made from this alone; they know no quantity by its name.
Letters: L layers, N samples.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, Self

import numpy as np

from layersim.errors import UserError
from layersim.report.json_values import is_plain, plain, with_nan, without_nan
from layersim.report.reading import short

LAYER = "layer"
"""The axis of L layers, counted from 1."""
RATIO = "ratio"
"""The unit of what is compared by division, as perplexities are."""
BY_CHANCE = 0.05
"""Above this p over the whole map a cell is no more than chance may make it."""
MOST_DRAWN = 100_000
"""Values of one picture; a heat map of 300 layers has 90 000."""
_NUMBERS = ("values", "interval", "null")
"""Fields in which null stands for NaN."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """One thing that was measured.

    A curve by layer has the axes `("layer",)`, a similarity of every pair of layers `("layer", "layer")`, one of each
    layer to earlier epochs `("epoch", "layer")`, a number for all layers together none. Other axes may have any name.
    """

    values: Any
    """A number, or numbers in lists nested as deep as there are axes. NaN: measured, and has no value. Arrays, tensors
    and numbers of NumPy become lists and numbers here, and in all other fields: the nearest float64 of each."""
    axes: tuple[str, ...] = ()
    label: str = ""
    """For people; where empty, the quantity's name."""
    unit: str = ""
    """`share` of the samples, shown in per cent; `samples` or `tokens` counted, shown as shares of all; `layer`, a
    layer's number, of a mean with a fraction; `ratio`, drawn in logarithms; any other is shown as it is written."""
    range: tuple[float | None, float | None] = (None, None)
    """The least and the most that a value can be; None: without an end. All pictures of it have these ends."""
    better: Literal["higher", "lower"] | None = None
    """Which values are good ones, if any; of similarities, which are those of layers that are alike."""
    overall: float | None = None
    """The one number that stands for all layers, in logs; where None and something is better, the last layer's."""
    options: dict[str, Any] = field(default_factory=dict)
    """How it was computed: numbers compare only where these agree."""
    interval: dict[str, Any] | None = None
    """`confidence`, and `low` and `high` in the shape of the values."""
    null: dict[str, Any] | None = None
    """What chance makes of it: `p` and `p_family`, of a cell and over the whole map, and `calibrated`, all in the shape
    of the values, from so many `permutations` drawn by a `seed`."""
    ticks: dict[str, list[Any]] = field(default_factory=dict)
    """What stands along an axis that does not count from 1, by the axis: epochs, thresholds (None: of no one), classes.
    A list under another name, as long as a single axis, is what a curve is drawn along in the axis's place."""

    def __post_init__(self) -> None:
        for key in _DEFAULTS:
            told = plain(getattr(self, key))
            if key in ("axes", "range") and isinstance(told, list):
                told = tuple(None if end in (math.inf, -math.inf) else end for end in told)
            object.__setattr__(self, key, told)

    def name_of(self, key: str) -> str:
        """For people, of the quantity published under this key."""
        return self.label or key.replace("_", " ")

    @property
    def is_curve(self) -> bool:
        """Whether it has one value a layer, and nothing else."""
        return self.axes == (LAYER,)

    @property
    def is_matrix(self) -> bool:
        """Whether it has a value for every pair of layers."""
        return self.axes == (LAYER, LAYER)

    @property
    def ends(self) -> tuple[float, float]:
        """Its range; −∞ or ∞ where that has no end."""
        least, most = self.range
        return -math.inf if least is None else least, math.inf if most is None else most

    @property
    def is_drawn(self) -> bool:
        """Whether its values are few enough for a picture."""
        return np.size(self.values) <= MOST_DRAWN

    @property
    def along(self) -> str:
        """What it is drawn along: its last axis, or what the ticks of a single axis have in its place."""
        return next((other for other in self.ticks if other not in self.axes), self.axes[-1])

    @property
    def one_number(self) -> float | None:
        """What stands for all layers together: itself, `overall`, or, where something is better, the last layer's."""
        if not self.axes:
            return float(self.values)
        if self.overall is not None or self.better is None or not self.is_curve:
            return self.overall
        return float(self.values[-1])

    @property
    def computed(self) -> str:
        """How, in words: its options."""
        return ", ".join(f"{option} {value}" for option, value in self.options.items())

    def to_last(self) -> Self:
        """Of a matrix the curve of every layer with the last."""
        told: dict[str, Any] = {"values": [row[-1] for row in self.values], "axes": (LAYER,)}
        for key, shaped in _SHAPED.items():
            if whole := getattr(self, key):
                told[key] = whole | {name: [row[-1] for row in whole[name]] for name in shaped}
        return replace(self, **told)

    def within_chance(self) -> str:
        """How many pairs of layers are not beyond chance, and of how many; of one model's layers (l, m) and (m, l) are
        one pair where they have one p. Empty where nothing tells."""
        if self.null is None or len(self.axes) != 2:
            return ""
        p = np.asarray(self.null["p_family"], dtype=np.float64)
        if self.is_matrix and np.array_equal(p, p.T, equal_nan=True):
            p = p[np.triu_indices(len(p), 1)]
        known, permutations = p[~np.isnan(p)], self.null["permutations"]
        counts = f"{(known > BY_CHANCE).sum()} of {known.size} pairs"
        return f"{counts} (family-wise p > {BY_CHANCE}, {permutations} permutations)"

    def check(self, name: str, layers: int) -> None:
        """Refuses, with a UserError, what does not fit its axes: values that are no numbers in their shape, an axis of
        layers without L entries, ticks or an interval of another shape, a range from more to less."""
        if not isinstance(name, str) or not name.strip() or "*" in name:  # which stands for any letters in W&B
            raise UserError(f"{short(name)}: expected a quantity's name, in letters and without *.")
        if len(name) > _LONGEST_NAME:
            raise UserError(f"{short(name)}: expected a name of at most {_LONGEST_NAME} letters, got {len(name)}.")
        for key, (expected, is_form) in _FORMS.items():
            if not is_form(given := getattr(self, key)):
                raise UserError(f"{name}: expected {expected} as its {key}, got {short(given)}.")
        try:
            values = np.asarray(self.values)
            found = f"{' × '.join(map(str, values.shape)) or 'one value'} of type {values.dtype}"
        except ValueError:
            values, found = np.asarray(None), "rows of different lengths"
        ticks = {axis: len(entries) for axis, entries in self.ticks.items()}
        lengths = [layers if axis == LAYER else ticks.get(axis) for axis in self.axes]
        fits = len(values.shape) == len(lengths) and all(
            wanted in (None, there) for wanted, there in zip(lengths, values.shape, strict=True)
        )
        if values.dtype.kind not in "iuf" or not fits:
            pairs = zip(self.axes, lengths, strict=True)
            axes = " × ".join(axis if length is None else f"{axis} ({length})" for axis, length in pairs)
            raise UserError(f"{name}: expected numbers over {axes or 'no axis'}, got {found}.")
        least, most = self.ends
        if not least <= most:
            raise UserError(f"{name}: expected the least before the most as its range, got {least:g} … {most:g}.")
        for tick, entries in self.ticks.items():
            if tick not in self.axes and (len(self.axes) != 1 or len(entries) != len(values)):
                expected = f"ticks of {', '.join(self.axes) or 'no axis'}"
                raise UserError(f"{name}: expected {expected}, got {len(entries)} of {tick}.")
        for key, part in ((key, part) for key, shaped in _SHAPED.items() if getattr(self, key) for part in shaped):
            found_part = np.asarray(getattr(self, key).get(part), dtype=object)
            if found_part.shape != values.shape:
                told = f"expected {part} of its {key} in the shape of its values, got {found_part.shape}"
                raise UserError(f"{name}: {told}.")
            if not all(map(_is_number, found_part.flat)):
                raise UserError(f"{name}: expected numbers as {part} of its {key}.")

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON has them: without what is as it is unless told; NaN and infinity as null."""
        return {key: without_nan(value) for key, value in vars(self).items() if value != _DEFAULTS[key]}

    @classmethod
    def from_json(cls, name: str, read: Any) -> tuple[Self, list[str]]:
        """What `to_json` wrote, with the names of fields that are not known here."""
        if not isinstance(read, dict) or "values" not in read:
            raise UserError(f"{name}: expected a JSON object with values, got {short(read)}.")
        told = {key: with_nan(value) if key in _NUMBERS else value for key, value in read.items() if key in _DEFAULTS}
        return cls(**told), sorted(read.keys() - _DEFAULTS.keys())


_DEFAULTS: dict[str, Any] = {
    each.name: each.default if each.default_factory is MISSING else each.default_factory() for each in fields(Quantity)
}
_SHAPED = {"interval": ("low", "high"), "null": ("p", "p_family", "calibrated")}
"""Numbers in the shape of the values."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_end(value: Any) -> bool:
    return value is None or _is_number(value)


_LONGEST_NAME = 100
_FORMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "axes": ("names", lambda axes: isinstance(axes, tuple) and all(isinstance(axis, str) for axis in axes)),
    "label": ("text", lambda label: isinstance(label, str) and len(label) <= _LONGEST_NAME),
    "unit": ("text", lambda unit: isinstance(unit, str) and len(unit) <= _LONGEST_NAME),
    "range": (
        "two numbers or null",
        lambda ends: isinstance(ends, tuple) and len(ends) == 2 and all(map(_is_end, ends)),
    ),
    "better": ("higher, lower or null", lambda better: better in (None, "higher", "lower")),
    "overall": ("a number or null", _is_end),
    "options": (
        "an object of text, numbers and lists of them",
        lambda options: isinstance(options, dict) and is_plain(options),
    ),
    "ticks": (
        "an object of lists",
        lambda ticks: (
            isinstance(ticks, dict)
            and all(
                isinstance(each, list) and all(isinstance(one, str | int | float | None) for one in each)
                for each in ticks.values()
            )
        ),
    ),
    "interval": (
        "an object with a number as confidence, or null",
        lambda ends: ends is None or (isinstance(ends, dict) and _is_number(ends.get("confidence", 0.95))),
    ),
    "null": (
        "an object with a whole number of permutations, or null",
        lambda null: null is None or (isinstance(null, dict) and isinstance(null.get("permutations"), int)),
    ),
}
"""What a field must be, in words and as a test."""


def perplexity(losses: Sequence[float]) -> list[float]:
    """(L,) exp of mean cross-entropies in nats a token, such as a record's `loss`; ∞ where that is beyond a float."""
    with np.errstate(over="ignore"):
        return [float(each) for each in np.exp(np.asarray(losses, dtype=np.float64))]


def three(value: float) -> str:
    """A number with three digits behind the point, and with three in all from 10 000 on, as perplexities can be."""
    return f"{value:.3f}" if not abs(value) >= 1e4 else f"{value:.3g}"


def curve(values: Any, **told: Any) -> Quantity:
    """A value a layer, first layer first, with any other fields."""
    return Quantity(values=values, axes=(LAYER,), **told)


def labels(quantities: Mapping[str, Quantity]) -> dict[str, str]:
    """For people, by name: the label of each, and its own name where one before it has that label."""
    found: dict[str, str] = {}
    for name, quantity in quantities.items():
        label = quantity.name_of(name)
        found[name] = name if label in found.values() else label
    return found


def curves(quantities: Mapping[str, Quantity]) -> dict[str, Quantity]:
    """All that has one value a layer, by its own name, with a short label that no other has: curves, and every
    matrix's similarity to the last layer as `name to last`."""
    label = labels({name: quantity for name, quantity in quantities.items() if quantity.is_curve})
    found: dict[str, Quantity] = {}
    for name, quantity in quantities.items():
        if quantity.is_curve:
            found[name] = replace(quantity, label=label[name])
        elif quantity.is_matrix:
            last = f"{name} to last"
            found[last] = replace(quantity.to_last(), label=last)
    return found


def told(value: float, unit: str, layers: int, samples: int) -> str:
    """One of a quantity's values for people, in its unit; of counts the share of all samples."""
    if math.isnan(value):
        return "none" if unit == LAYER else "nan"
    if unit == LAYER:
        return f"{value:.{0 if float(value).is_integer() else 2}f} of {layers}"
    if unit in ("samples", "tokens"):
        value, unit = value / samples, "share"
    return f"{value:.1%}" if unit == "share" else three(value)


def single_numbers(quantities: Mapping[str, Quantity], layers: int, samples: int) -> dict[str, str]:
    """All that holds for all layers together, for people, by name, with its interval and how it was computed; and of
    similarities how many chance explains."""
    shown = {name: quantity for name, quantity in quantities.items() if not quantity.axes or quantity.within_chance()}
    found = {}
    for name, label in labels(shown).items():
        if (quantity := shown[name]).axes:
            found[f"{label} no more than chance"] = quantity.within_chance()
            continue
        ends = quantity.interval or {}
        numbers = [quantity.values, *(ends[end] for end in ("low", "high") if ends)]
        value, *interval = (told(number, quantity.unit, layers, samples) for number in numbers)
        value += f", {' … '.join(interval)}" if interval else ""
        found[label] = f"{value} ({quantity.computed})" if quantity.options else value
    return found
