"""Objectives: losses of what is read of a model's layers."""

from layersim.objectives.aligned import Aligned, LastLayer
from layersim.objectives.base import Objective, WeightedSum
from layersim.objectives.cosine_regularized import CosineRegularized
from layersim.objectives.distilled import Distilled, KLToLast
from layersim.objectives.reading import Reading, Step
from layersim.objectives.scheduled import Alternating, Mixed, Progressive
from layersim.objectives.uncertainty_weighted import UncertaintyWeighted
from layersim.objectives.weights import LayerWeights, layer_weights

__all__ = [
    "Aligned",
    "Alternating",
    "CosineRegularized",
    "Distilled",
    "KLToLast",
    "LastLayer",
    "LayerWeights",
    "Mixed",
    "Objective",
    "Progressive",
    "Reading",
    "Step",
    "UncertaintyWeighted",
    "WeightedSum",
    "layer_weights",
]
