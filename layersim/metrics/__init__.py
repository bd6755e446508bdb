"""What a readout tells, and what the path of features through the layers does."""

from layersim.metrics.accuracy import LayerAccuracy
from layersim.metrics.agreement import Agreement, agreement
from layersim.metrics.class_paths import ClassPaths, class_paths
from layersim.metrics.effective_depth import RightAtBoth, effective_depth, measured_depth, paired_interval
from layersim.metrics.exit_curve import ExitCounts, accuracy_at, exit_counts, exit_curve_area
from layersim.metrics.f1 import LayerF1, layer_confusion
from layersim.metrics.loss import LayerLoss
from layersim.metrics.monotonicity import Rise, TargetProbability, cosine_to_last, rise
from layersim.metrics.neural_collapse import NeuralCollapse, class_means, neural_collapse, self_duality
from layersim.metrics.progression import progression, rise_record
from layersim.metrics.saturation import Saturation, mean_saturation_layer, saturated_early, saturation_layer
from layersim.metrics.straightness import Straightness, straightness
from layersim.similarity.kept_samples import KeptSamples

__all__ = [
    "Agreement",
    "ClassPaths",
    "ExitCounts",
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
    "accuracy_at",
    "agreement",
    "class_means",
    "class_paths",
    "cosine_to_last",
    "effective_depth",
    "exit_counts",
    "exit_curve_area",
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
