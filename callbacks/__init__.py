"""Lightning callbacks that measure layers and keep the record; recipes name them by class path."""

from callbacks.exit_curve_monitor import ExitCurveMonitor
from callbacks.layer_accuracy_monitor import LayerAccuracyMonitor
from callbacks.prediction_writer import PredictionWriter
from callbacks.run_recorder import RunRecorder
from callbacks.saturation_monitor import SaturationMonitor
from callbacks.similarity_heatmaps import SimilarityHeatmaps

__all__ = [
    "ExitCurveMonitor",
    "LayerAccuracyMonitor",
    "PredictionWriter",
    "RunRecorder",
    "SaturationMonitor",
    "SimilarityHeatmaps",
]
