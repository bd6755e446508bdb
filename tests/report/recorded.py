"""Records for tests, of what layersim's own monitors publish, by short words."""

from typing import Any

from layersim.report.quantity import LAYER, RATIO, Quantity
from layersim.report.records import LayerRecord

_HEAD = ("epoch", "step", "stage", "layers", "samples", "unit", "left_out")
_KINDS: dict[str, dict[str, Any]] = {
    "perplexity": {"axes": (LAYER,), "unit": RATIO, "range": (1, None), "better": "lower"},
    "accuracy": {"axes": (LAYER,), "range": (0, 1), "better": "higher"},
    "loss": {"axes": (LAYER,), "unit": "nats", "range": (0, None), "better": "lower"},
    "f1": {"axes": (LAYER,), "label": "F1", "range": (0, 1), "better": "higher"},
    "saturation": {"axes": (LAYER,), "label": "saturated here", "unit": "samples", "range": (0, None)},
    "saturated_early": {"unit": "share", "range": (0, 1)},
    "mean_saturation_layer": {"unit": LAYER},
    "effective_depth": {"unit": LAYER, "options": {"epsilon": 0.01}},
    "exit_curve_area": {"range": (0, 1), "better": "higher"},
    "target_probability": {"axes": (LAYER,), "label": "probability of the true class", "range": (0, 1)},
    "nc1": {"axes": (LAYER,), "label": "NC1", "unit": RATIO, "better": "lower"},
}
_SIMILARITIES: dict[str, dict[str, Any]] = {
    "cosine": {"label": "cosine similarity", "range": (-1, 1), "better": "higher"},
    "cka": {"label": "linear CKA", "range": (-1, 1), "better": "higher"},
    "angular": {"label": "angular distance", "range": (0, 1), "better": "lower"},
}


def quantities(**values: Any) -> dict[str, Quantity]:
    """Quantities by name; `similarity` holds matrices by the measure's name, `options`, `intervals` and `nulls` what
    belongs to any; `exit_curve` its thresholds, mean exit layers and accuracies; `to_epoch` L numbers by measure and
    epoch. What is a Quantity stays one."""
    options, intervals, nulls = (values.pop(key, {}) for key in ("options", "intervals", "nulls"))
    similarity, exits, to_epoch = (values.pop(key, {}) for key in ("similarity", "exit_curve", "to_epoch"))
    found: dict[str, Quantity] = {}
    for name, kind in _KINDS.items():
        if values.get(name) is not None and not isinstance(values[name], Quantity):
            found[name] = Quantity(values=values[name], **kind)
    for name, matrix in similarity.items():
        told = _SIMILARITIES.get(name, {}) | {"options": options.get(name, {}), "interval": intervals.get(name)}
        told["null"] = nulls.get(name)
        found[name] = Quantity(values=matrix, axes=(LAYER, LAYER), **told)
    if exits:
        ticks = {key: exits[key] for key in ("threshold", "mean_exit_layer")}
        told = {"label": "accuracy with early exit", "range": (0, 1), "better": "higher", "ticks": ticks}
        found["exit_curve"] = Quantity(values=exits["accuracy"], axes=("threshold",), **told)
    for name, epochs in to_epoch.items():
        ticks = {"epoch": [*epochs]}
        told = {"label": f"{name} to epoch", "range": (-1, 1), "better": "higher", "ticks": ticks}
        found[f"{name}_to_epoch"] = Quantity(values=[*epochs.values()], axes=("epoch", LAYER), **told)
    return found | {name: one for name, one in values.items() if isinstance(one, Quantity)}


def recorded(**values: Any) -> LayerRecord:
    """A record: its head, and the rest as `quantities` takes it."""
    head = {key: values.pop(key) for key in _HEAD if key in values}
    return LayerRecord(**head, quantities=quantities(**values))
