"""Transformers that yield their layers' features."""

from layersim.backbones.base import Backbone
from layersim.backbones.vision import TimmBackbone

__all__ = ["Backbone", "TimmBackbone"]
