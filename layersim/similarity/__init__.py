"""How alike are the layers? One measure a file: a pure function first, then the metric that streams it."""

from layersim.similarity.cosine import CosineSimilarity, cosine
from layersim.similarity.linear_cka import LinearCKA, linear_cka

__all__ = ["CosineSimilarity", "LinearCKA", "cosine", "linear_cka"]
