"""Features of any model, taken by hooks while it runs."""

from layersim.tapping.feature_tap import FeatureTap
from layersim.tapping.output_pooling import Pool, check_pool

__all__ = ["FeatureTap", "Pool", "check_pool"]
