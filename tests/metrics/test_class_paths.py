"""The class means' plane: against scikit-learn, for features that lie in one, and which classes are chosen."""

import math

import pytest
import torch
from sklearn.decomposition import PCA

from layersim.metrics import class_paths

from .paths import drawn


def test_against_scikit_learn() -> None:
    targets = torch.arange(60) % 4
    features = drawn(5, 60, 7)
    paths = class_paths(features, targets)
    means = torch.stack([features[:, targets == number].mean(1) for number in range(4)])
    pca = PCA(2).fit(means.flatten(0, 1).numpy())
    expected = torch.from_numpy(pca.transform(means.flatten(0, 1).numpy())).view(4, 5, 2)
    torch.testing.assert_close(paths.points.abs(), expected.abs(), rtol=1e-9, atol=1e-9)
    assert paths.explained == pytest.approx(pca.explained_variance_ratio_.sum())
    assert paths.classes == [0, 1, 2, 3]
    for axis in paths.points.flatten(0, 1).mT:
        assert axis[axis.abs().argmax()] > 0


def test_a_plane_is_shown_whole() -> None:
    """Distances between means stay as they are; the order of the samples decides nothing."""
    targets = torch.arange(30) % 3
    means = drawn(4, 3, 2)
    features = means[:, targets] @ torch.linalg.qr(drawn(9, 9)).Q[:2]
    paths = class_paths(features, targets)
    assert paths.explained == pytest.approx(1)
    flat = means.transpose(0, 1).flatten(0, 1)
    shown = paths.points.flatten(0, 1)
    torch.testing.assert_close(torch.cdist(shown, shown), torch.cdist(flat, flat), atol=1e-6, rtol=0)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    shuffled = class_paths(features[:, order], targets[order])
    torch.testing.assert_close(shuffled.points, paths.points, rtol=0, atol=1e-12)


def test_the_most_frequent_classes_are_shown() -> None:
    targets = torch.tensor([5, 5, 5, 2, 2, 9, 9, 9, 7, 3, 3])
    assert class_paths(drawn(2, 11, 3), targets, max_classes=3).classes == [2, 5, 9]


def test_a_single_mean_has_no_plane() -> None:
    paths = class_paths(drawn(1, 6, 4), torch.zeros(6, dtype=torch.long))
    assert (paths.classes, tuple(paths.points.shape)) == ([0], (1, 1, 2))
    assert paths.points.isnan().all()


def test_not_finite() -> None:
    features = drawn(3, 20, 4)
    features[1, 0] = math.nan
    paths = class_paths(features, torch.arange(20) % 2)
    assert paths.points.shape == (2, 3, 2)
    assert paths.points.isnan().all()
    assert math.isnan(paths.explained)
