"""Straight and crooked paths whose numbers are known, and a loop over samples."""

import math
from itertools import pairwise

import pytest
import torch

from layersim.errors import UserError
from layersim.metrics import straightness

from .paths import drawn, straight


def test_a_straight_path() -> None:
    path = straightness(straight(layers=6))
    torch.testing.assert_close(path.path_over_chord, torch.ones(40, dtype=torch.float64), rtol=0, atol=1e-14)
    for values, shape in ((path.angles, (4, 40)), (path.distances, (6, 40))):
        torch.testing.assert_close(values, torch.zeros(shape, dtype=torch.float64), rtol=0, atol=1e-6)
    assert (path.distances[[0, -1]] == 0).all()


def test_it_can_fail() -> None:
    path = straightness(straight(layers=6) + 0.1 * drawn(6, 40, 8, seed=1))
    assert (path.path_over_chord > 1.001).all()
    assert (path.angles > 0.5).all()
    assert (path.distances[1:-1] > 1e-3).all()


@pytest.mark.parametrize("turn", [0.0, 1e-7, 60.0, 90.0, 179.9999999])
def test_a_zigzag_of_known_angle(turn: float) -> None:
    """Steps of length 5 that turn by an angle to one side and the other, in a plane of 16 dimensions."""
    headings = torch.deg2rad(torch.tensor([0.5, -0.5, 0.5, -0.5], dtype=torch.float64) * turn)
    steps = 5 * torch.stack([headings.cos(), headings.sin()], dim=1)
    points = torch.cat([torch.zeros(1, 2, dtype=torch.float64), steps.cumsum(0)]) + 3
    axes = torch.linalg.qr(drawn(16, 16)).Q[:2]
    path = straightness((points @ axes)[:, None])
    half = math.radians(turn / 2)
    torch.testing.assert_close(path.angles, torch.full((3, 1), turn, dtype=torch.float64), rtol=0, atol=1e-6)
    assert path.path_over_chord.item() == pytest.approx(1 / math.cos(half), rel=1e-6)
    height = math.tan(half) / 4  # of the zigzag's corners, ÷ the chord of 4 · 5 · cos
    assert path.distances[:, 0].tolist() == pytest.approx([0, height, 0, height, 0], rel=1e-6, abs=1e-6)
    norms = points.norm(dim=1)[:-1] / 5
    assert path.skip_over_residual[:, 0].tolist() == pytest.approx(norms.tolist())


def test_distance_is_to_the_segment_not_to_its_line() -> None:
    points = torch.tensor([[0.0, 0.0], [-3.0, 4.0], [16.0, 8.0], [4.0, -8.0], [10.0, 0.0]])
    path = straightness(points[:, None])
    assert path.distances[:, 0].tolist() == pytest.approx([0, 0.5, 1.0, 0.8, 0])


def test_by_a_loop_in_half_precision() -> None:
    features = (drawn(4, 20, 6) + 30).bfloat16()
    path = straightness(features)
    for sample, points in enumerate(features.double().unbind(1)):
        steps = [after - before for before, after in pairwise(points)]
        chord = points[-1] - points[0]
        length = sum(step.norm().item() for step in steps)
        assert path.path_over_chord[sample].item() == pytest.approx(length / chord.norm().item(), rel=1e-12)
        for place, (before, after) in enumerate(pairwise(steps)):
            angle = math.degrees(math.acos((before @ after / before.norm() / after.norm()).item()))
            assert path.angles[place, sample].item() == pytest.approx(angle, rel=1e-9)
        grid = points[0] + torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None] * chord
        for layer, point in enumerate(points):
            nearest = ((grid - point).norm(dim=1).min() / chord.norm()).item()
            assert path.distances[layer, sample].item() == pytest.approx(nearest, abs=1e-3)


def test_a_length_of_zero_is_nan() -> None:
    features = straight(layers=4, samples=3)
    features[:, 0] = features[:1, 0]  # stands still
    features[-1, 1] = features[0, 1]  # comes back
    path = straightness(features)
    assert path.path_over_chord.isnan().tolist() == [True, True, False]
    assert path.distances.isnan().any(0).tolist() == [True, True, False]
    assert path.angles.isnan().any(0).tolist() == [True, False, False]
    assert path.skip_over_residual[:, 0].isinf().all(), "a block adds nothing"


def test_two_layers_have_no_angle() -> None:
    path = straightness(straight(layers=2, samples=3))
    assert path.angles.shape == (0, 3)
    torch.testing.assert_close(path.path_over_chord, torch.ones(3, dtype=torch.float64))


def test_one_layer_is_no_path() -> None:
    with pytest.raises(UserError, match="needs two of them or more, but got one"):
        straightness(torch.randn(1, 5, 3))
    with pytest.raises(UserError, match=r"expected \(L, N, D\), layers first"):
        straightness(torch.randn(5, 3))
