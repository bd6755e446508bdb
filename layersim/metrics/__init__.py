"""What a readout tells."""

from layersim.metrics.accuracy import LayerAccuracy
from layersim.metrics.effective_depth import effective_depth
from layersim.metrics.loss import LayerLoss
from layersim.metrics.saturation import Saturation, mean_saturation_layer, saturated_early, saturation_layer

__all__ = [
    "LayerAccuracy",
    "LayerLoss",
    "Saturation",
    "effective_depth",
    "mean_saturation_layer",
    "saturated_early",
    "saturation_layer",
]
