"""Transformers that yield their layers' features."""

from layersim.backbones.base import Backbone
from layersim.backbones.huggingface import TransformersBackbone
from layersim.backbones.vision import TimmBackbone

__all__ = ["Backbone", "TimmBackbone", "TransformersBackbone"]
