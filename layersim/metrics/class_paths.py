"""The way of each class's mean through the layers, in a plane. Letters: L layers, N samples, D width, C classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from layersim.metrics.neural_collapse import class_means


@dataclass(frozen=True)
class ClassPaths:
    """Where the mean of each class is, at every layer."""

    classes: list[int]
    """C of them, ascending."""
    points: Tensor
    """(C, L, 2) float64 coordinates along the first two principal components, in the features' unit."""
    explained: float
    """Share of the means' variance that the plane shows, 0 … 1."""


def class_paths(features: Tensor, targets: Tensor, *, max_classes: int = 10) -> ClassPaths:
    """The means of the most frequent classes at each layer, in the plane of the first two principal components of all
    these C · L means.

    A component's direction is free but for its sign: the greatest coordinate along it, by its size, is positive.

    Args:
        features: (L, N, D), D ≥ 2, of any floating dtype.
        targets: (N,) classes; of equally frequent ones, smaller numbers come first.
        max_classes: C at most.
    """
    seen, counts = torch.unique(targets, return_counts=True)
    classes = seen[counts.argsort(descending=True, stable=True)[:max_classes]].sort().values
    means = torch.stack([class_means(layer, targets, classes) for layer in features], dim=1)
    flat = means.flatten(0, 1)
    flat = flat - flat.mean(dim=0)
    if not flat.isfinite().all():
        return ClassPaths(classes.tolist(), means[..., :2] * torch.nan, torch.nan)
    _, spread, axes = torch.linalg.svd(flat, full_matrices=False)
    points = flat @ axes[:2].mT
    points = points * points.gather(0, points.abs().argmax(dim=0, keepdim=True)).sign()
    shown = (spread[:2].square().sum() / spread.square().sum()).item()
    return ClassPaths(classes.tolist(), points.view(*means.shape[:2], 2), shown)
