"""Neural collapse: full, none, and by loops over samples with a pseudo-inverse."""

import math

import pytest
import torch
from torch import Tensor

from layersim.metrics import class_means, neural_collapse, self_duality

from .paths import drawn, simplex

MEASURES = ("nc1", "within_over_between", "norm_spread", "cosine_spread", "simplex_gap")


def labels(samples: int, classes: int) -> Tensor:
    return torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(0))


def reference(features: Tensor, targets: Tensor) -> list[float]:
    """The definitions with D × D matrices, a loop over classes and numpy's pseudo-inverse; (5,) of one layer."""
    x, classes = features.double(), sorted(set(targets.tolist()))
    groups = [x[targets == number] for number in classes]
    means = torch.stack([group.mean(0) for group in groups])
    within = sum(((g - g.mean(0)).mT @ (g - g.mean(0)) / len(g) for g in groups), torch.zeros(())) / len(groups)
    centred = means - means.mean(0)
    between = centred.mT @ centred / len(groups)
    norms = centred.norm(dim=1)
    cosines = torch.stack(
        [a @ b / (a.norm() * b.norm()) for i, a in enumerate(centred) for j, b in enumerate(centred) if i != j]
    )
    return [
        torch.trace(within @ torch.linalg.pinv(between, hermitian=True, rtol=1e-9)).item() / len(groups),
        (torch.trace(within) / torch.trace(between)).item(),
        (norms.std(correction=0) / norms.mean()).item(),
        cosines.std(correction=0).item(),
        (cosines + 1 / (len(groups) - 1)).abs().mean().item(),
    ]


def test_full_collapse() -> None:
    targets = labels(80, 5)
    collapsed = 3 * simplex(5, 12)[targets] + 50
    measured = neural_collapse(torch.stack([collapsed, collapsed + drawn(80, 12)]), targets)
    assert measured is not None
    for name in MEASURES:
        whole, noisy = getattr(measured, name).tolist()
        assert whole == pytest.approx(0, abs=1e-12), name
        assert noisy > 0.05, name
    means = class_means(collapsed, targets, torch.arange(5))
    duality = self_duality([means, means, means], [7 * simplex(5, 12), drawn(5, 12), -simplex(5, 12)])
    assert duality[0].item() == pytest.approx(0, abs=1e-12)
    assert 0.5 < duality[1].item() < 2
    assert duality[2].item() == pytest.approx(2)


def test_weights_at_right_angles_are_the_root_of_two_away() -> None:
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert self_duality([means], [torch.tensor([[0.0, 3.0], [0.0, 3.0]])]).item() == pytest.approx(math.sqrt(2))


@pytest.mark.parametrize(("classes", "width"), [(2, 6), (5, 6), (10, 6)])
def test_by_loops(classes: int, width: int) -> None:
    """Unequal classes, a mean far off, more classes than directions."""
    targets = labels(150, classes)
    features = (drawn(3, 150, width) + 2 * drawn(classes, width, seed=1)[targets] + 50).float()
    measured = neural_collapse(features, targets)
    assert measured is not None
    assert measured.classes == list(range(classes))
    for layer in range(3):
        found = [getattr(measured, name)[layer].item() for name in MEASURES]
        assert found == pytest.approx(reference(features[layer], targets), rel=1e-9, abs=1e-9)


def test_order_and_names_of_classes_do_not_matter() -> None:
    targets, features = labels(60, 4), drawn(2, 60, 8)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    first, second = neural_collapse(features, targets), neural_collapse(features[:, order], 10 * targets[order] + 3)
    assert first is not None
    assert second is not None
    assert second.classes == [3, 13, 23, 33]
    for name in MEASURES:
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=1e-12, atol=1e-12)


def test_a_class_of_one_sample_has_no_variability() -> None:
    targets = torch.tensor([0, 0, 1, 1, 2])
    features = drawn(2, 5, 3)
    alone, without = neural_collapse(features, targets), neural_collapse(features[:, :4], targets[:4])
    assert alone is not None
    assert without is not None
    assert alone.classes == [0, 1]
    assert torch.equal(alone.nc1, without.nc1)
    assert neural_collapse(features, torch.tensor([0, 0, 0, 1, 2])) is None
    assert neural_collapse(features, torch.zeros(5, dtype=torch.int64)) is None


def test_what_is_not_finite_is_nan_at_its_layer_alone() -> None:
    targets, features = labels(30, 3), drawn(3, 30, 4)
    features[1, 7, 2] = math.inf
    measured = neural_collapse(features, targets)
    assert measured is not None
    for name in MEASURES:
        assert getattr(measured, name).isnan().tolist() == [False, True, False], name


def test_means_of_chosen_classes() -> None:
    features, targets = torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0], [5.0, 7.0]]), torch.tensor([4, 1, 2, 4])
    means = class_means(features, targets, torch.tensor([1, 3, 4]))
    assert means[[0, 2]].tolist() == [[3, 4], [3, 4.5]]
    assert means[1].isnan().all()
