"""Two models compared layer by layer: what they may be given as, their features of the same samples, the command."""

from layersim.across.features import ModelFeatures, read_features
from layersim.across.sources import Source, open_module, read_source

__all__ = ["ModelFeatures", "Source", "open_module", "read_features", "read_source"]
