"""Objectives: which layers' losses count, and how much, at a given step."""

from layersim.objectives.aligned import Aligned
from layersim.objectives.alternating import Alternating
from layersim.objectives.base import Objective
from layersim.objectives.cosine_regularized import CosineRegularized
from layersim.objectives.distilled import Distilled
from layersim.objectives.last_layer import LastLayer
from layersim.objectives.mixed import Mixed
from layersim.objectives.progressive import Progressive
from layersim.objectives.scheduled import Scheduled
from layersim.objectives.weights import LayerWeights, layer_weights

__all__ = [
    "Aligned",
    "Alternating",
    "CosineRegularized",
    "Distilled",
    "LastLayer",
    "LayerWeights",
    "Mixed",
    "Objective",
    "Progressive",
    "Scheduled",
    "layer_weights",
]
