"""Callbacks that measure layers and keep the record; recipes name Lightning's by class path."""

from typing import TYPE_CHECKING, Any

from callbacks.epoch_similarity import EpochSimilarity
from callbacks.layer_geometry_monitor import LayerGeometryMonitor
from callbacks.layer_measures import LayerMeasures
from callbacks.monitor import LayerMonitor
from callbacks.prediction_writer import PredictionWriter
from callbacks.progression_monitor import ProgressionMonitor
from callbacks.readout_monitors import (
    ExitCurveMonitor,
    LayerAccuracyMonitor,
    LayerCalibrationMonitor,
    LayerF1Monitor,
    SaturationMonitor,
)
from callbacks.run_recorder import ReportWriter, RunRecorder
from callbacks.similarity_heatmaps import SimilarityHeatmaps

if TYPE_CHECKING:
    from callbacks.layer_measures_callback import LayerMeasuresCallback

__all__ = [
    "EpochSimilarity",
    "ExitCurveMonitor",
    "LayerAccuracyMonitor",
    "LayerCalibrationMonitor",
    "LayerF1Monitor",
    "LayerGeometryMonitor",
    "LayerMeasures",
    "LayerMeasuresCallback",
    "LayerMonitor",
    "PredictionWriter",
    "ProgressionMonitor",
    "ReportWriter",
    "RunRecorder",
    "SaturationMonitor",
    "SimilarityHeatmaps",
]


def __getattr__(name: str) -> Any:
    """What needs transformers' Trainer, when it is asked for."""
    if name != "LayerMeasuresCallback":
        raise AttributeError(f"module 'callbacks' has no attribute {name!r}")
    from callbacks.layer_measures_callback import LayerMeasuresCallback

    return LayerMeasuresCallback
