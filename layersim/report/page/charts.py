"""The page's charts: of every quantity its specification, and its numbers as the page's script reads them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from layersim.report.drawing.colors import Range, scale_of
from layersim.report.drawing.specifications import COUNTED, LAYERS, bars, cells, lines, upper, words
from layersim.report.json_values import each_of, without_nan
from layersim.report.quantity import LAYER, RATIO, Quantity, labels
from layersim.report.records import LayerRecord, shared_name

Chart = dict[str, Any]
"""A title, a specification, and, by the series' names, the quantities of a record that it shows."""

_OWN_WORDS = ("", LAYER, RATIO, "share", *COUNTED)  # units that a title need not tell
_MOST_SERIES = 4  # numbers of one unit in a chart
_SPANS: tuple[Range, ...] = ("fixed", "data")


def charts(records: Sequence[LayerRecord]) -> list[Chart]:
    """Every quantity of these records: first the two that carry the story (the curve that runs are told apart by, and
    the first matrix; two matrices where there is no such curve), then the others, then how they went over training."""
    every: dict[str, list[Quantity]] = {}
    for record in records:
        for name, quantity in drawn(record).items():
            every.setdefault(name, []).append(quantity)
    made = [chart for name, found in every.items() for chart in _charts(name, found)]
    made += _numbers({name: found[0] for name, found in every.items() if not found[0].axes})
    first = shared_name(records, "worth"), shared_name(records, "matrix")
    carrying = filter(None, [*first, *(name for name, found in every.items() if found[0].is_matrix)])
    large = [*dict.fromkeys(carrying)][:2]
    for chart in made:
        chart["large"] = chart["mode"] == "now" and "last" not in chart and chart["keys"].keys() <= {*large}
    return sorted(made, key=lambda one: (not one["large"], one["mode"] == "training", one["large"] == ("spans" in one)))


def static_chart(title: str, quantities: Mapping[str, Quantity], *, large: bool = False, **more: Any) -> Chart:
    """A chart that no slider moves, of quantities of one kind with one axis each, by the name of their series."""
    first = next(iter(quantities.values()))
    log, named = _logarithmic([*quantities.values()]), _named(first)
    spec = lines(first.along, first.unit, series=[*quantities], log=log, named=named)
    shown: dict[str, Any] = {"quantities": {name: _drawn(quantity) for name, quantity in quantities.items()}}
    shown |= {"layers": max(len(quantity.values) for quantity in quantities.values())}
    return _chart({name: name for name in quantities}, first, upper(title), spec, record=shown, large=large, **more)


def drawn_record(record: LayerRecord) -> dict[str, Any]:
    """A record as the page's script reads it."""
    head = {key: getattr(record, key) for key in ("epoch", "step", "layers", "samples", "unit")}
    return head | {"quantities": {name: _drawn(each) for name, each in drawn(record).items()}}


def drawn(record: LayerRecord) -> dict[str, Quantity]:
    """Its quantities that are not too large for a picture."""
    return {name: quantity for name, quantity in record.quantities.items() if quantity.is_drawn}


def _drawn(quantity: Quantity) -> dict[str, Any]:
    """Its values and, where there are, ticks, the ends of its interval (of a matrix, to the last layer alone), and what
    chance makes of it."""
    ends = (quantity.to_last() if quantity.is_matrix else quantity).interval or {}
    told = {"ticks": quantity.ticks, "low": ends.get("low"), "high": ends.get("high")}
    told |= {key: (quantity.null or {}).get(key) for key in ("p_family", "calibrated")}
    values = _finite(quantity.values, 4 if len(quantity.axes) > 1 else 6)
    return {"values": values} | {key: _finite(value, 6) for key, value in told.items() if value not in (None, {})}


def _finite(value: Any, digits: int) -> Any:
    """Numbers rounded to so many digits in all; what is not finite becomes None, as JSON has it."""
    return each_of(without_nan(value), lambda one: float(f"{one:.{digits}g}") if isinstance(one, float) else one)


def _charts(name: str, found: Sequence[Quantity]) -> Iterator[Chart]:
    quantity, axes, keys = found[0], found[0].axes, {name: ""}
    label = upper(quantity.name_of(name))
    unit = "" if quantity.unit in _OWN_WORDS else f", {quantity.unit}"
    log = _logarithmic(found)
    over = lines("epoch", quantity.unit, series=LAYERS, log=log)
    if quantity.is_curve:
        counted = quantity.unit in COUNTED
        title = f"{label} by layer, and up to it" if counted else f"{label} by layer{unit}"
        spec = bars(LAYER, quantity.unit) if counted else lines(LAYER, quantity.unit, log=log)
        yield _chart(keys, quantity, title, spec, column=name)
        yield _chart(keys, quantity, f"{label} over training{unit}", over, "training")
    elif len(axes) == 1:
        spec = lines(quantity.along, quantity.unit, log=log, named=_named(quantity))
        yield _chart(keys, quantity, f"{label} by {words(quantity.along)}{unit}", spec, along=quantity.along)
    elif len(axes) == 3 and np.shape(quantity.values)[2] == 2:
        names = quantity.ticks.get(axes[0], range(1, len(quantity.values) + 1))
        spec = lines(f"first {axes[2]}", "", series=[*map(str, names)])
        yield _chart(keys, quantity, f"{label}: second {axes[2]} over the first", spec, plane=True)
    elif axes:
        scales = {span: scale_of(label, quantity, [np.ravel(one.values) for one in found], span) for span in _SPANS}
        spans = {span: [scale.low, scale.high] for span, scale in scales.items()}
        title = f"{label}, layer by layer" if quantity.is_matrix else f"{label} by {' and '.join(map(words, axes))}"
        spec = cells(axes[-1], ", ".join(axes[:-1]), scales["fixed"].colors)
        note = "Hatched: no more than chance, family-wise p > 0.05" if any(one.null for one in found) else ""
        yield _chart(keys, quantity, title, spec, spans=spans, note=note)
    if quantity.is_matrix:
        last, title = quantity.to_last(), f"{label} to the last layer"
        yield _chart(keys, last, title, lines(LAYER, last.unit, log=log), last=True, column=f"{name} to last")
        yield _chart(keys, last, f"{title} over training", over, "training", last=True)


def _numbers(quantities: Mapping[str, Quantity]) -> Iterator[Chart]:
    """Over the training what has no axes: numbers of one unit, or of one range, in one chart."""
    alike: dict[Any, dict[str, str]] = {}
    for name, label in labels(quantities).items():
        alike.setdefault(quantities[name].unit or quantities[name].range, {})[name] = label
    for names in alike.values():
        for start in range(0, len(names), _MOST_SERIES):
            keys = dict([*names.items()][start : start + _MOST_SERIES])
            first, title = quantities[next(iter(keys))], ", ".join(keys.values())
            spec = lines("epoch", first.unit, series=[*keys.values()])
            yield _chart(keys, first, f"{upper(title)} over training", spec, "training")


def _chart(keys: dict[str, str], quantity: Quantity, title: str, spec: Any, mode: str = "now", **more: Any) -> Chart:
    told = {"axes": quantity.axes, "unit": quantity.unit, "range": quantity.range}
    return {"keys": keys, "title": title, "mode": mode, "spec": spec} | told | more


def _named(quantity: Quantity) -> bool:
    return any(isinstance(tick, str) for tick in quantity.ticks.get(quantity.along, ()))


def _logarithmic(found: Sequence[Quantity]) -> bool:
    """Whether these values are compared by division, and can be."""
    return found[0].unit == RATIO and all(bool((np.ravel(quantity.values) > 0).all()) for quantity in found)
