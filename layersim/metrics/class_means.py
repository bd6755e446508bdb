"""The means of classes at every layer: their way through the layers, and neural collapse.

Papyan, Han and Donoho 2020, "Prevalence of neural collapse during the terminal phase of deep learning training", arXiv
2008.08186. Every class counts the same, whatever its number of samples: the global mean is the mean of the class means,
which with classes of equal size is the paper's. Letters: L layers, N samples, D width, C classes that have samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.similarity.features import Layers, as_features, require_whole

Classes = Tensor | Sequence[int]  # or a NumPy array


@dataclass(frozen=True)
class NeuralCollapse:
    """Of C classes; (L,) float64 each, all 0 in full collapse."""

    classes: list[int]
    """Those with two samples or more: one sample has no variability."""
    nc1: Tensor
    """tr(Σ_W Σ_B⁺) / C: variability within classes against that between them, along the directions that tell classes
    apart (the paper's NC1). NaN where the class means are all the same."""
    within_over_between: Tensor
    """tr Σ_W / tr Σ_B: the same along all directions."""
    norm_spread: Tensor
    """Standard deviation ÷ mean, over the classes, of ‖μ_c − μ‖: equal norms (NC2)."""
    cosine_spread: Tensor
    """Standard deviation of the cosines between the μ_c − μ of two classes: equal angles (NC2)."""
    simplex_gap: Tensor
    """Mean of |cosine + 1 / (C − 1)|: angles as wide as C directions can have (NC2)."""


def labelled(features: Layers, targets: Classes) -> tuple[Tensor, Tensor]:
    """(L, N, D) features and their (N,) classes, as tensors; a UserError where they are nothing of the kind."""
    features = as_features(features)
    targets = torch.as_tensor(targets, device=features.device)
    if targets.shape != (samples := features.shape[1:2]):
        raise UserError(f"targets: expected {tuple(samples)} classes, one a sample, got shape {tuple(targets.shape)}")
    return features, targets


def class_means(features: Tensor, targets: Classes, classes: Classes) -> Tensor:
    """(C, D) float64 means of (N, D) features over the samples of each of (C,) classes, ascending; NaN for a class
    without any. Samples of other classes do not count."""
    (features,), targets = labelled(features[None], targets)
    classes = torch.as_tensor(classes, device=features.device)
    wanted = torch.isin(targets, classes)
    rows = torch.searchsorted(classes, targets[wanted])
    total = features.new_zeros(len(classes), features.shape[1], dtype=torch.float64)
    total.index_add_(0, rows, features[wanted].double())
    return total / torch.bincount(rows, minlength=len(classes))[:, None]


def neural_collapse(features: Layers, targets: Classes) -> NeuralCollapse | None:
    """NC1 and NC2 at each layer of (L, N, D) features with (N,) classes; None with fewer than two classes that have two
    samples.

    Σ_W is the mean over the classes of each class's covariance (divided by its number of samples), Σ_B the covariance
    of the class means. Σ_B⁺ leaves out what float64 cannot tell from zero. Raises UserError for other shapes.
    """
    features, targets = labelled(features, targets)
    seen, counts = torch.unique(targets, return_counts=True)
    classes = seen[counts > 1]
    if len(classes) < 2:
        return None
    wanted = torch.isin(targets, classes)
    layers = torch.stack([_of_layer(layer[wanted], targets[wanted], classes) for layer in features])
    return NeuralCollapse(classes.tolist(), *layers.unbind(dim=1))


def self_duality(means: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """‖W / ‖W‖ − M / ‖M‖‖ in Frobenius norms at each layer (NC3): the classifier's rows against the centred class means
    of what it reads. 0 where they are one up to scale, √2 where they have nothing to do with each other, 2 at most.

    Args:
        means: of each layer, (C, D) class means.
        weights: of each layer, (C, D), the rows of those classes.

    Returns:
        (L,) float64.
    """
    distances = []
    for mean, weight in zip(map(torch.as_tensor, means), map(torch.as_tensor, weights), strict=True):
        centred, weight = mean - mean.mean(dim=0), weight.double()
        ours, theirs = (matrix / torch.linalg.matrix_norm(matrix) for matrix in (weight, centred))
        distances.append(torch.linalg.matrix_norm(ours - theirs))
    return torch.stack(distances)


@dataclass(frozen=True)
class ClassPaths:
    """Where the mean of each class is, at every layer."""

    classes: list[int]
    """C of them, ascending."""
    points: Tensor
    """(C, L, 2) float64 coordinates along the first two principal components, in the features' unit."""
    explained: float
    """Share of the means' variance that the plane shows, 0 … 1."""


def class_paths(features: Layers, targets: Classes, *, max_classes: int = 10) -> ClassPaths:
    """The means of the most frequent classes at each layer, in the plane of the first two principal components of all
    these C · L means.

    A component's direction is free but for its sign: the greatest coordinate along it, by its size, is positive.

    Args:
        features: (L, N, D), D ≥ 2, of any floating dtype.
        targets: (N,) classes; of equally frequent ones, smaller numbers come first.
        max_classes: C at most.

    Raises UserError for what is not (L, N, D), not N classes, or `max_classes` below 1.
    """
    require_whole("max_classes", max_classes, 1)
    features, targets = labelled(features, targets)
    seen, counts = torch.unique(targets, return_counts=True)
    classes = seen[counts.argsort(descending=True, stable=True)[:max_classes]].sort().values
    means = torch.stack([class_means(layer, targets, classes) for layer in features], dim=1)
    flat = means.flatten(0, 1)
    flat = flat - flat.mean(dim=0)
    if len(flat) < 2 or not flat.isfinite().all():
        return ClassPaths(classes.tolist(), means[..., :2] * torch.nan, torch.nan)
    _, spread, axes = torch.linalg.svd(flat, full_matrices=False)
    points = flat @ axes[:2].mT
    points = points * points.gather(0, points.abs().argmax(dim=0, keepdim=True)).sign()
    shown = (spread[:2].square().sum() / spread.square().sum()).item()
    return ClassPaths(classes.tolist(), points.view(*means.shape[:2], 2), shown)


def _of_layer(layer: Tensor, targets: Tensor, classes: Tensor) -> Tensor:
    """(5,) the measures of one layer, in the order of `NeuralCollapse`."""
    means = class_means(layer, targets, classes)
    rows, count = torch.searchsorted(classes, targets), len(classes)
    share = 1 / (torch.bincount(rows)[rows].double() * count)  # of a sample, so that every class has the same
    within = layer.double() - means[rows]
    centred = means - means.mean(dim=0)
    if not (centred.isfinite().all() and within.isfinite().all()):
        return means.new_full((5,), torch.nan)

    _, spread, axes = torch.linalg.svd(centred / count**0.5, full_matrices=False)
    told = spread > max(centred.shape) * torch.finfo(torch.float64).eps * spread[0]
    told[count - 1 :] = False  # centred means have one rank less than there are classes
    variances = share @ (within @ axes[told].mT).square()
    nc1 = (variances / spread[told].square()).sum() / count if told.any() else means.new_tensor(torch.nan)
    ratio = (share @ within.square().sum(dim=1)) / spread.square().sum()

    norms = torch.linalg.vector_norm(centred, dim=1)
    directions = centred / norms[:, None]
    upper = torch.triu_indices(count, count, offset=1, device=layer.device)
    cosines = (directions @ directions.mT)[upper[0], upper[1]]
    equal_norms, equal_angles = norms.std(correction=0) / norms.mean(), cosines.std(correction=0)
    return torch.stack([nc1, ratio, equal_norms, equal_angles, (cosines + 1 / (count - 1)).abs().mean()])
