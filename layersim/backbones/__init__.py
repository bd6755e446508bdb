"""Transformers that yield their layers' features."""

from layersim.backbones.base import Backbone
from layersim.backbones.huggingface import TransformersBackbone
from layersim.backbones.lora import Lora
from layersim.backbones.vision import TimmBackbone

__all__ = ["Backbone", "Lora", "TimmBackbone", "TransformersBackbone"]
