"""Lightning callbacks that measure layers and keep the record; recipes name them by class path."""

from callbacks.epoch_similarity import EpochSimilarity
from callbacks.exit_curve_monitor import ExitCurveMonitor
from callbacks.layer_accuracy_monitor import LayerAccuracyMonitor
from callbacks.layer_calibration_monitor import LayerCalibrationMonitor
from callbacks.layer_f1_monitor import LayerF1Monitor
from callbacks.layer_geometry_monitor import LayerGeometryMonitor
from callbacks.monitor import LayerMonitor
from callbacks.prediction_writer import PredictionWriter
from callbacks.progression_monitor import ProgressionMonitor
from callbacks.report_writer import ReportWriter
from callbacks.run_recorder import RunRecorder
from callbacks.saturation_monitor import SaturationMonitor
from callbacks.similarity_heatmaps import SimilarityHeatmaps

__all__ = [
    "EpochSimilarity",
    "ExitCurveMonitor",
    "LayerAccuracyMonitor",
    "LayerCalibrationMonitor",
    "LayerF1Monitor",
    "LayerGeometryMonitor",
    "LayerMonitor",
    "PredictionWriter",
    "ProgressionMonitor",
    "ReportWriter",
    "RunRecorder",
    "SaturationMonitor",
    "SimilarityHeatmaps",
]
