"""What a readout tells, and what the path of features through the layers does."""

from layersim.metrics.calibration import LayerCalibration
from layersim.metrics.class_means import (
    ClassPaths,
    NeuralCollapse,
    class_means,
    class_paths,
    neural_collapse,
    self_duality,
)
from layersim.metrics.effective_depth import effective_depth, measured_depth, paired_interval
from layersim.metrics.geometry import LayerGeometry, effective_rank, intrinsic_dimension
from layersim.metrics.monotonicity import Rise, TargetProbability, cosine_to_last, rise
from layersim.metrics.progression import Agreement, agreement, progression, rise_record
from layersim.metrics.readout import (
    LayerAccuracy,
    LayerF1,
    LayerLoss,
    RightAtBoth,
    Saturation,
    mean_saturation_layer,
    saturated_early,
    saturation_layer,
)
from layersim.metrics.straightness import Straightness, straightness
from layersim.similarity.kept_samples import KeptSamples

__all__ = [
    "Agreement",
    "ClassPaths",
    "KeptSamples",
    "LayerAccuracy",
    "LayerCalibration",
    "LayerF1",
    "LayerGeometry",
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
    "effective_rank",
    "intrinsic_dimension",
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
