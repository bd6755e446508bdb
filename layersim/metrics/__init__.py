"""What a readout tells, and what the path of features through the layers does."""

from layersim.metrics.accuracy import LayerAccuracy
from layersim.metrics.agreement import Agreement, agreement
from layersim.metrics.class_paths import ClassPaths, class_paths
from layersim.metrics.effective_depth import RightAtBoth, effective_depth, measured_depth, paired_interval
from layersim.metrics.f1 import LayerF1, layer_confusion
from layersim.metrics.kept_samples import KeptSamples
from layersim.metrics.loss import LayerLoss
from layersim.metrics.monotonicity import Rise, TargetProbability, cosine_to_last, rise
from layersim.metrics.neural_collapse import NeuralCollapse, class_means, neural_collapse, self_duality
from layersim.metrics.progression import progression, rise_record
from layersim.metrics.saturation import Saturation, mean_saturation_layer, saturated_early, saturation_layer
from layersim.metrics.straightness import Straightness, straightness

__all__ = [
    "Agreement",
    "ClassPaths",
    "KeptSamples",
    "LayerAccuracy",
    "LayerF1",
    "LayerLoss",
    "NeuralCollapse",
    "RightAtBoth",
    "Rise",
    "Saturation",
    "Straightness",
    "TargetProbability",
    "agreement",
    "class_means",
    "class_paths",
    "cosine_to_last",
    "effective_depth",
    "layer_confusion",
    "mean_saturation_layer",
    "measured_depth",
    "neural_collapse",
    "paired_interval",
    "progression",
    "rise",
    "rise_record",
    "saturated_early",
    "saturation_layer",
    "self_duality",
    "straightness",
]
