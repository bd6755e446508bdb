"""Data modules and the samplers that make them exact on any number of processes."""

from layersim.data.base import SplitDataModule
from layersim.data.digits import Digits
from layersim.data.images import Images
from layersim.data.samplers import EvaluationSampler, TrainSampler
from layersim.data.splits import Split

__all__ = ["Digits", "EvaluationSampler", "Images", "Split", "SplitDataModule", "TrainSampler"]
