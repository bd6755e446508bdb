"""What a language model writes from each of its layers, and how good that is."""

from layersim.report.numbers import perplexity
from layersim.report.quality import LayerQuality
from layersim.text.generation import generate
from layersim.text.ngrams import distinct, diversity, repetition
from layersim.text.quality import quality_by_layer

__all__ = [
    "LayerQuality",
    "distinct",
    "diversity",
    "generate",
    "perplexity",
    "quality_by_layer",
    "repetition",
]
