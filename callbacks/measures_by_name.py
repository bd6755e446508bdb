"""What is measured of layers, by short names."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torchmetrics import Metric

from callbacks.epoch_similarity import EpochSimilarity
from callbacks.layer_geometry_monitor import LayerGeometryMonitor
from callbacks.monitor import LayerMonitor
from callbacks.progression_monitor import ProgressionMonitor
from callbacks.readout_monitors import (
    ExitCurveMonitor,
    LayerAccuracyMonitor,
    LayerCalibrationMonitor,
    LayerF1Monitor,
    SaturationMonitor,
)
from callbacks.similarity_heatmaps import SimilarityHeatmaps, default_measures
from layersim.errors import UserError, meant
from layersim.similarity.measure import NAMES, Measure, measure_named

MONITORS: dict[str, type[LayerMonitor[Any]]] = {
    "accuracy": LayerAccuracyMonitor,
    "similarity": SimilarityHeatmaps,
    "saturation": SaturationMonitor,
    "exits": ExitCurveMonitor,
    "progression": ProgressionMonitor,
    "geometry": LayerGeometryMonitor,
    "calibration": LayerCalibrationMonitor,
    "f1": LayerF1Monitor,
}
"""What is measured beside similarities, by name."""
USUAL = ("accuracy", "similarity", "saturation", "exits")
"""What `layersim fit` measures unless told otherwise."""

_KNOWN = (*MONITORS, *NAMES)

Measures = str | LayerMonitor[Any] | Sequence[str | LayerMonitor[Any]] | Mapping[str, Metric] | None


def monitors_of(measures: Measures, *, reads_head: bool) -> list[LayerMonitor[Any]]:
    """The monitors of these measures.

    Raises:
        UserError: a name that there is not, with near ones; one that reads the classifier where there is none.
    """
    if isinstance(measures, Mapping):
        return [SimilarityHeatmaps(dict(measures))]
    if measures is None:
        measures = USUAL if reads_head else ("similarity",)
    if isinstance(measures, str | LayerMonitor):
        measures = [measures]
    if not isinstance(measures, Sequence):
        raise UserError(f"measures: expected names in a list, got {type(measures).__name__}: of {', '.join(_KNOWN)}.")
    asked = [measure for place, measure in enumerate(measures) if measure not in measures[:place]]
    if not asked:
        raise UserError(f"measures: expected at least one of {', '.join(_KNOWN)}.")
    usual = default_measures(grouped=False)
    similarities: dict[str, Measure | Metric] = {
        name: usual.get(name) or measure_named(name)()
        for name in asked
        if isinstance(name, str) and name in NAMES and not (name in usual and "similarity" in asked)
    }
    made = [_monitor(measure) for measure in asked if not (isinstance(measure, str) and measure in NAMES)]
    made += [SimilarityHeatmaps(similarities)] if similarities else []
    for monitor in made:
        if monitor.reads_head and not reads_head:
            raise UserError(f"{type(monitor).__name__} reads the classifier at every layer. Name it: head=…")
    return made


def _monitor(measure: object) -> LayerMonitor[Any]:
    if isinstance(measure, EpochSimilarity) or (isinstance(measure, LayerMonitor) and measure.named is not None):
        own = "follows a Lightning Trainer's epochs" if measure.named is None else "has parts of its own named"
        raise UserError(f"{type(measure).__name__} {own}: expected a monitor without, or a name: {', '.join(_KNOWN)}.")
    if isinstance(measure, LayerMonitor):
        return copy.copy(measure)
    if isinstance(measure, str) and measure in MONITORS:
        return MONITORS[measure]()
    hint = meant(str(measure).lower(), _KNOWN)
    raise UserError(f"There is no measure {measure!r}.{hint} Choose from {', '.join(_KNOWN)}.")
