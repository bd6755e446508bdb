"""The geometry of each layer: Gaussians of known rank and dimension, references, coverage, and what has no value."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from layersim.errors import UserError
from layersim.metrics.geometry import LayerGeometry, directions, effective_rank, intrinsic_dimension, spread
from layersim.outputs import LayerFeatures
from layersim.similarity.features import TooFewSamples


def gaussian(samples: int, width: int, rank: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """(1, N, D) features on a subspace of this rank, turned at random."""
    draw = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=torch.float64)).Q[:rank]
    return (torch.randn(1, samples, rank, generator=draw, dtype=torch.float64) @ turn).to(dtype)


def reference_rank(features: Tensor) -> float:
    sizes = np.linalg.svd(features.double().numpy(), compute_uv=False)
    shares = sizes[sizes > 1e-12 * sizes[0]] / sizes.sum()
    return math.exp(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize(("samples", "width", "rank"), [(400, 24, 24), (400, 24, 7), (30, 60, 60), (30, 60, 1)])
def test_the_rank_is_that_of_the_singular_values(samples: int, width: int, rank: int) -> None:
    features = gaussian(samples, width, rank)
    found = effective_rank(features)[0, 0].item()
    assert found == pytest.approx(reference_rank(features[0]), rel=1e-9)
    assert 1 - 1e-9 <= found <= min(rank, samples) + 1e-9
    if samples > 10 * width:
        assert found > 0.97 * rank  # a Gaussian's singular values are nearly equal


def test_a_mean_counts_unless_it_is_taken_off() -> None:
    features = (gaussian(500, 16, 16) + 1000).float()
    assert effective_rank(features)[0].item() == pytest.approx(reference_rank(features[0]), rel=1e-9)
    assert effective_rank(features)[0].item() < 1.2
    values = features[0].double()
    expected = reference_rank(values - values.mean(0))
    assert effective_rank(features, centering="samples")[0].item() == pytest.approx(expected, rel=1e-6)
    assert expected > 15


def reference_dimension(features: Tensor) -> float:
    distances, _ = NearestNeighbors(n_neighbors=3).fit(features.numpy()).kneighbors(features.numpy())
    ratios = np.sort(np.log(distances[:, 2] / distances[:, 1]))
    kept = len(ratios) - int(0.1 * len(ratios))
    return kept / float(np.minimum(ratios, ratios[kept - 1]).sum())


@pytest.mark.parametrize(("rank", "width"), [(2, 30), (5, 30), (10, 10)])
def test_the_dimension_of_a_gaussian_is_found(rank: int, width: int) -> None:
    features = gaussian(1500, width, rank)
    (value, low, high), left_out = intrinsic_dimension(features)
    assert value.item() == pytest.approx(reference_dimension(features[0]), rel=1e-9)
    assert value.item() == pytest.approx(rank, rel=0.15)
    assert low < value < high
    assert left_out.item() == 0
    # not of the width that they are embedded in, nor of their rank: a curve in five dimensions has one
    turn = torch.rand(1500, 1, dtype=torch.float64, generator=torch.Generator()) * torch.tensor(
        [1.0, 2.0, 3.0, 4.0, 5.0]
    )
    assert intrinsic_dimension(torch.cat([turn.sin(), turn.cos()], 1)[None])[0][0].item() < 1.6


def test_float32_far_from_zero_loses_no_more_than_its_own_digits() -> None:
    features = (gaussian(600, 20, 4) + 100).float()
    assert intrinsic_dimension(features)[0][0].item() == pytest.approx(
        reference_dimension(features[0].double()), rel=1e-6
    )


def test_samples_equal_to_another_count_once() -> None:
    features = gaussian(400, 6, 6)
    doubled = torch.cat([features, features[:, :150], features[:, :50]], dim=1)
    found, left_out = intrinsic_dimension(doubled)
    assert left_out.item() == 200
    torch.testing.assert_close(found, intrinsic_dimension(features)[0], rtol=1e-9, atol=0)


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    features = gaussian(200, 8, 8)[0] + torch.tensor([3.0] + [0.0] * 7)
    cosine, norm = spread(directions(features).sum(0, keepdim=True))[0].tolist()
    units = features / features.norm(dim=1, keepdim=True)
    pairs = (units @ units.T)[~torch.eye(200, dtype=torch.bool)]
    assert cosine == pytest.approx(pairs.mean().item(), rel=1e-12)
    assert norm == pytest.approx(features.norm(dim=1).mean().item(), rel=1e-12)
    nowhere = spread(directions(gaussian(4000, 32, 32)[0]).sum(0, keepdim=True))[0, 0].item()
    assert abs(nowhere) < 1e-3


def measured(features: Tensor, batch: int = 64, order: Tensor | None = None, **options: int) -> dict[str, Tensor]:
    metric, order = LayerGeometry(**options), torch.arange(features.shape[1]) if order is None else order
    for rows in order.split(batch):
        metric.update(LayerFeatures(features[:, rows], None, rows))
    return metric.compute()


def test_neither_batches_nor_order_change_anything() -> None:
    features = torch.cat([gaussian(300, 12, rank, seed=rank, dtype=torch.float32) + rank for rank in (2, 12)])
    whole = measured(features, 300, max_samples=100)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    for name, values in measured(features, 7, order, max_samples=100).items():
        torch.testing.assert_close(values, whole[name], rtol=1e-9, atol=1e-12, msg=name)
    everything = measured(features, max_samples=300)
    torch.testing.assert_close(everything["norm"], whole["norm"])  # of all samples
    assert not torch.allclose(everything["effective_rank"], whole["effective_rank"])  # of those kept


Draw = Callable[[int], Tensor]


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("effective_rank", lambda seed: gaussian(300, 16, 16, seed) / torch.arange(1, 17)),
        ("mean_cosine", lambda seed: gaussian(300, 8, 8, seed) + 0.5),
        ("norm", lambda seed: gaussian(300, 8, 8, seed)),
        ("intrinsic_dimension", lambda seed: gaussian(300, 8, 3, seed)),
    ],
)
def test_intervals_hold_the_mean_of_other_samples(name: str, draw: Draw) -> None:
    """95 % of them, within the binomial bounds of 200 draws, about what is expected at this N."""
    found = torch.stack([measured(draw(seed), 300)[name][:, 0] for seed in range(200)])
    expected = found[:, 0].mean()
    held = ((found[:, 1] <= expected) & (expected <= found[:, 2])).double().mean().item()
    assert 0.90 <= held <= 0.99, held
    spread_of_values = found[:, 0].std().item()
    assert ((found[:, 2] - found[:, 1]).mean() / 2).item() == pytest.approx(2.0 * spread_of_values, rel=0.2)


@pytest.mark.parametrize("samples", range(3, 11))
def test_a_dimension_of_few_samples_has_an_interval_about_it(samples: int) -> None:
    """Where the samples' scores, each beside its neighbours', would add up to less than nothing."""
    (value, low, high), _ = intrinsic_dimension(torch.cat([gaussian(samples, 5, 5, seed) for seed in range(100)]))
    assert value.isfinite().all()
    assert low.isfinite().all()
    assert ((high - low) > 0.1 * value).all()


def test_layers_without_a_value_are_nan_and_named_once() -> None:
    good = gaussian(50, 6, 6)
    zero, constant, broken, one_zero = torch.zeros_like(good), torch.ones_like(good), good.clone(), good.clone()
    broken[0, 3, 2] = torch.inf
    one_zero[0, 5] = 0
    with pytest.warns(
        UserWarning, match="geometry is NaN for effective_rank at layer 2, 4, intrinsic_dimension"
    ) as told:
        found = measured(torch.cat([good, zero, constant, broken, one_zero]))
    assert len(told) == 1
    values = {name: each[0].isnan().tolist() for name, each in found.items() if name != "duplicates"}
    assert values == {
        "effective_rank": [False, True, False, True, False],
        "intrinsic_dimension": [False, True, True, True, False],
        "mean_cosine": [False, True, False, True, True],
        "norm": [False, False, False, False, False],
    }
    assert found["mean_cosine"][0, 2].item() == pytest.approx(1, abs=1e-12)
    assert found["effective_rank"][0, 2].item() == pytest.approx(1, abs=1e-6)
    assert found["duplicates"].tolist() == [0, 49, 49, 0, 0]


def test_samples_all_equally_far_apart_have_no_dimension() -> None:
    assert intrinsic_dimension(torch.eye(20)[None])[0].isnan().all()


@pytest.mark.parametrize("discard", [-0.1, 1.0, 1.5, math.nan])
def test_a_discard_that_leaves_no_samples_is_refused(discard: float) -> None:
    with pytest.raises(UserError, match="Expected discard at least 0 and below 1, but got"):
        intrinsic_dimension(gaussian(20, 4, 4), discard=discard)
    assert intrinsic_dimension(gaussian(20, 4, 4), discard=0.0)[0].isfinite().all()


def test_options_are_refused() -> None:
    with pytest.raises(UserError, match="max_samples: expected at least 3, got 2"):
        LayerGeometry(max_samples=2)
    with pytest.raises(UserError, match="centering: expected one of none, samples, got 'components'"):
        LayerGeometry(centering="components")  # type: ignore[arg-type]
    with pytest.raises(TooFewSamples, match="layer geometry needs at least 2 samples, got 1"):
        measured(gaussian(1, 4, 4))


def test_no_samples_have_no_geometry() -> None:
    empty = pytest.raises(TooFewSamples, match="layer geometry needs at least 2 samples, got 0")
    with pytest.warns(UserWarning, match="before the ``update`` method"), empty:
        LayerGeometry().compute()
