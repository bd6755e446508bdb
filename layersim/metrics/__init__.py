"""What a readout tells."""

from layersim.metrics.accuracy import LayerAccuracy
from layersim.metrics.effective_depth import effective_depth
from layersim.metrics.exit_curve import ExitCounts, accuracy_at, exit_counts, exit_curve_area
from layersim.metrics.loss import LayerLoss
from layersim.metrics.saturation import Saturation, mean_saturation_layer, saturated_early, saturation_layer

__all__ = [
    "ExitCounts",
    "LayerAccuracy",
    "LayerLoss",
    "Saturation",
    "accuracy_at",
    "effective_depth",
    "exit_counts",
    "exit_curve_area",
    "mean_saturation_layer",
    "saturated_early",
    "saturation_layer",
]
