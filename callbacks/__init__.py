"""Callbacks that measure layers and keep the record; recipes name Lightning's by class path."""

from typing import TYPE_CHECKING, Any

from callbacks.epoch_similarity import EpochSimilarity
from callbacks.exit_curve_monitor import ExitCurveMonitor
from callbacks.layer_accuracy_monitor import LayerAccuracyMonitor
from callbacks.layer_calibration_monitor import LayerCalibrationMonitor
from callbacks.layer_f1_monitor import LayerF1Monitor
from callbacks.layer_geometry_monitor import LayerGeometryMonitor
from callbacks.layer_measures import LayerMeasures
from callbacks.monitor import LayerMonitor
from callbacks.prediction_writer import PredictionWriter
from callbacks.progression_monitor import ProgressionMonitor
from callbacks.report_writer import ReportWriter
from callbacks.run_recorder import RunRecorder
from callbacks.saturation_monitor import SaturationMonitor
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
