"""Each measure against another library, or its published formula written out in float64: to 1e-6 of it, and to 1e-9
where the measure itself computes in float64."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.stats
import torch
from scipy.spatial.distance import pdist
from sklearn.linear_model import LinearRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from layersim.errors import UserError
from layersim.similarity import (
    angular_distance,
    cknna,
    cosine,
    linear_cka,
    mean_cca,
    mutual_knn,
    procrustes,
    pwcca,
    rbf_cka,
    regression_r2,
    rsa,
    svcca,
)
from layersim.similarity.rsa import _mean_ranks

from .references import reference_hsic0, reference_hsic1, related_layers

Array = np.ndarray
Pair = Callable[[Array, Array], float]


def centred(x: Array) -> Array:
    x = x - x[0]
    return x - x.mean(0)


def angle(x: Array, y: Array) -> float:
    cosines = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    return float(np.arccos(np.clip(cosines, -1, 1)).mean() / np.pi)


def rbf(hsic: Callable[[Tensor, Tensor], float], bandwidth: float) -> Pair:
    def kernel(x: Array) -> Tensor:
        sigma = bandwidth * np.median(pdist(x))
        return torch.from_numpy(rbf_kernel(x / sigma, gamma=0.5))

    def pair(x: Array, y: Array) -> float:
        k, m = kernel(centred(x)), kernel(centred(y))
        return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))

    return pair


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def overlap(x: Array, y: Array, k: int = 4) -> float:
    near = [NearestNeighbors(n_neighbors=k).fit(unit(z)).kneighbors(return_distance=False) for z in (x, y)]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(*near, strict=True)]))


def align(k: Array, m: Array, neighbours: int) -> float:
    """Huh et al. 2024, equations 16 and 17, as printed."""
    total, n = 0.0, len(k)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        near = [set(sorted(others, key=lambda j: -a[i, j])[:neighbours]) for a in (k, m)]
        for j in near[0] & near[1]:
            total += (k[i, j] - k[i].mean()) * (m[i, j] - m[i].mean())
    return total


def local_alignment(x: Array, y: Array, k: int = 4) -> float:
    a, b = unit(x) @ unit(x).T, unit(y) @ unit(y).T
    return align(a, b, k) / math.sqrt(align(a, a, k) * align(b, b, k))


def rank_correlation(metric: str) -> Pair:
    return lambda x, y: float(scipy.stats.spearmanr(pdist(x, metric), pdist(y, metric)).statistic)


def fit(x: Array, y: Array) -> float:
    """scipy's disparity also fits the scale: 1 less the square of the nuclear norm. It wants equal widths."""
    wide = max(x.shape[1], y.shape[1])
    filled = [np.pad(centred(z), ((0, 0), (0, wide - z.shape[1]))) for z in (x, y)]
    return math.sqrt(1 - scipy.spatial.procrustes(*filled)[2])


def correlations(x: Array, y: Array) -> Array:
    return np.cos(scipy.linalg.subspace_angles(centred(x), centred(y)))


def few_directions(x: Array, variance: float = 0.99) -> Array:
    u, s, _ = np.linalg.svd(centred(x), full_matrices=False)
    share = np.cumsum(s**2) / np.sum(s**2)
    return u[:, : int(np.argmax(share >= variance)) + 1]


def weighted_correlations(x: Array, y: Array) -> float:
    """Morcos et al. 2018, by whitening covariances instead of decomposing the features."""
    x, y = centred(x), centred(y)
    whiten = [scipy.linalg.inv(scipy.linalg.sqrtm(z.T @ z)) for z in (x, y)]
    left, values, _ = np.linalg.svd(whiten[0] @ x.T @ y @ whiten[1], full_matrices=False)
    weights = np.abs((x @ whiten[0] @ left).T @ x).sum(1)
    return float((weights * values).sum() / weights.sum())


def explained(x: Array, y: Array) -> float:
    x, y = centred(x), centred(y)
    rest = y - LinearRegression().fit(x, y).predict(x)
    return float(1 - (rest**2).sum() / (y**2).sum())


CASES: dict[str, tuple[Callable[..., Tensor], Pair, float]] = {
    # the measure, two layers' value by another way, the error allowed
    "angular": (angular_distance, angle, 1e-6),
    "rbf biased": (rbf_cka, rbf(reference_hsic0, 1.0), 1e-9),
    "rbf debiased": (
        lambda *x: rbf_cka(*x, estimator="debiased", bandwidth=0.4),
        rbf(reference_hsic1, 0.4),
        1e-9,
    ),
    "cknna": (lambda *x: cknna(*x, k=4), local_alignment, 1e-9),
    "mutual knn": (lambda *x: mutual_knn(*x, k=4), overlap, 1e-9),
    "rsa euclidean": (rsa, rank_correlation("euclidean"), 1e-9),
    "rsa correlation": (lambda *x: rsa(*x, distance="correlation"), rank_correlation("correlation"), 1e-9),
    "procrustes": (procrustes, fit, 1e-9),
    "mean cca": (mean_cca, lambda x, y: float(correlations(x, y).mean()), 1e-9),
    "svcca": (svcca, lambda x, y: float(correlations(few_directions(x), few_directions(y)).mean()), 1e-9),
    "pwcca": (pwcca, weighted_correlations, 1e-9),
    "regression": (regression_r2, explained, 1e-9),
}
each_case = pytest.mark.parametrize("name", CASES)


def check(name: str, features: Tensor, other: Tensor | None = None, atol: float | None = None) -> None:
    measure, pair, error = CASES[name]
    rows = features.double().numpy()
    columns = rows if other is None else other.double().numpy()
    expected = torch.tensor([[pair(x, y) for y in columns] for x in rows], dtype=torch.float64)
    ours = measure(features) if other is None else measure(features, other)
    torch.testing.assert_close(ours, expected, rtol=0, atol=atol or error)


@each_case
@pytest.mark.parametrize("samples", [14, 15, 40])
def test_equals_the_reference(name: str, samples: int) -> None:
    check(name, related_layers(samples, 6))


@each_case
def test_layers_of_another_width(name: str) -> None:
    other = related_layers(40, 6 if name == "angular" else 9, layers=2, seed=5)
    check(name, related_layers(40, 6, layers=3), other)


@each_case
@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_hard_numbers(name: str, offset: float, scale: float) -> None:
    features = related_layers(40, 6, layers=3)
    check(name, (features / features.std((1, 2), keepdim=True) + offset) * scale, atol=1e-6)


@each_case
@pytest.mark.parametrize("scale", [1e-100, 1e100])
def test_float64_beyond_the_range_of_float32(name: str, scale: float) -> None:
    features = related_layers(40, 6, layers=3).double()
    torch.testing.assert_close(CASES[name][0](features * scale), CASES[name][0](features), rtol=0, atol=1e-9)


@each_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    check(name, (related_layers(40, 6, layers=3) + 3).to(dtype), atol=1e-6)


@pytest.mark.parametrize(
    ("measure", "samples"),
    [
        (angular_distance, 1),
        (rbf_cka, 2),
        (procrustes, 2),
        (lambda x: mutual_knn(x, k=1), 3),
        (lambda x: cknna(x, k=1), 2),
        (rsa, 3),
        (cosine, 2),
        (lambda x: linear_cka(x, estimator="biased"), 2),
    ],
)
def test_the_fewest_samples_and_many_layers(measure: Callable[[Tensor], Tensor], samples: int) -> None:
    ours = measure(related_layers(samples, 12, layers=49))
    assert ours.shape == (49, 49)
    assert ours.isfinite().all()


def test_more_components_than_samples() -> None:
    check("procrustes", related_layers(10, 24), atol=1e-9)
    check("rbf biased", related_layers(10, 24), atol=1e-9)


def test_a_small_angle_keeps_its_digits() -> None:
    """Where the cosine is 1 − 5e-9, and float32's arccos would give nothing."""
    turn = 1e-4
    first = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    second = torch.tensor([[[math.cos(turn), math.sin(turn)]]], dtype=torch.float64)
    ours = angular_distance(torch.cat([first, second]).float())
    assert ours[0, 1].item() == pytest.approx(turn / math.pi, rel=1e-3)
    assert ours.diagonal().tolist() == [0, 0]
    assert angular_distance(first, -first).item() == 1


def test_equal_distances_share_their_rank() -> None:
    grid = torch.randint(0, 3, (3, 30, 4), generator=torch.Generator().manual_seed(0)).float()
    assert len(np.unique(pdist(grid[0].numpy()))) < 20
    check("rsa euclidean", grid)


def test_mean_ranks_keep_their_halves_however_many_pairs() -> None:
    """Of the first n ranks the mean is (n + 1) / 2; float32 has no halves beyond 2²³."""
    assert _mean_ranks(torch.tensor([2, 1, 3])).tolist() == [1.5, 3, 5]
    assert _mean_ranks(torch.tensor([2**25, 4])).tolist() == [2**24 + 0.5, 2**25 + 2.5]


def test_layers_of_less_than_full_rank() -> None:
    features = related_layers(60, 9, layers=3).double()  # in float32 the sum would be rounded, and count as a direction
    features[:, :, 6] = features[:, :, 0] + features[:, :, 1]
    kept = features[:, :, [0, 1, 2, 3, 4, 5, 7, 8]]
    for measure in (mean_cca, regression_r2):
        ours = measure(features, kept)
        torch.testing.assert_close(ours.diagonal(), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-9)
        torch.testing.assert_close(mean_cca(features), mean_cca(kept), rtol=0, atol=1e-9)


def test_cknna_of_all_pairs_by_its_definition() -> None:
    features = related_layers(30, 6, layers=2)
    units = features.double() / features.double().norm(dim=2, keepdim=True)
    kernels = units @ units.mT
    kernels = kernels - kernels.mean(2, keepdim=True)
    a, b = (kernel.fill_diagonal_(0) for kernel in kernels)
    expected = (a * b).sum() / (a.norm() * b.norm())
    torch.testing.assert_close(cknna(features, k=29)[0, 1], expected, rtol=0, atol=1e-12)


def test_neighbours_of_unrelated_layers_overlap_by_chance() -> None:
    features = torch.randn(2, 400, 50, generator=torch.Generator().manual_seed(0))
    assert mutual_knn(features)[0, 1].item() == pytest.approx(10 / 399, abs=0.01)


@each_case
@pytest.mark.parametrize("value", [0.1, 1e8, math.nan, math.inf])
def test_a_layer_that_cannot_be_measured_is_nan_in_its_row_and_column(name: str, value: float) -> None:
    measure = CASES[name][0]
    features = related_layers(40, 6)
    clean = measure(features)
    if math.isfinite(value):
        features[2] = value
        if name == "angular":
            features[2, 7] = 0  # a constant has a direction, nothing has none
        message = r"NaN for layer 3 \(counted from 1\): "
    else:
        features[2, 5, 3], features[2, 9, 0] = value, -value
        message = r"NaN for layer 3 \(counted from 1\), with 2 values that are not finite in layer 3: "
    with pytest.warns(UserWarning, match=message):
        ours = measure(features)
    assert ours[2].isnan().all()
    assert ours[:, 2].isnan().all()
    rest = torch.tensor([0, 1, 3])
    torch.testing.assert_close(ours[rest][:, rest], clean[rest][:, rest], rtol=0, atol=1e-12)
    with pytest.warns(UserWarning, match=r"NaN for layer 3 of other \(counted from 1\)"):
        across = measure(clean_pair := related_layers(40, 6, layers=2, seed=9), features)
    assert across.isnan().sum() == 2
    torch.testing.assert_close(across[:, rest], measure(clean_pair, features[rest]), rtol=0, atol=1e-7)


def test_samples_all_equally_far_apart_have_no_ranks() -> None:
    features = related_layers(8, 8, layers=2)
    features[0] = torch.eye(8)
    with pytest.warns(UserWarning, match="layer 1 .*equally far apart"):
        ours = rsa(features)
    assert ours.isnan().tolist() == [[True, True], [True, False]]
    with pytest.warns(UserWarning, match="layer 1 "):
        rbf_cka(features, estimator="debiased")


def test_half_of_the_samples_at_one_point_have_no_median_distance() -> None:
    features = related_layers(9, 6, layers=2)
    features[0, :8] = features[0, 0].clone()
    with pytest.warns(UserWarning, match="layer 1 "):
        assert rbf_cka(features)[1, 1] == pytest.approx(1)


TWO = torch.ones(2, 5, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: angular_distance(torch.ones(2, 0, 4)), 'angular distance with centering="none" needs at least 1'),
        (lambda: rbf_cka(torch.ones(2, 1, 4)), 'RBF CKA with estimator="biased" needs at least 2 samples, got 1'),
        (lambda: rbf_cka(torch.ones(2, 3, 4), estimator="debiased"), "needs at least 4 samples, got 3"),
        (lambda: rbf_cka(TWO, estimator="full"), "estimator: expected one of biased.*got .full."),
        (lambda: rbf_cka(TWO, bandwidth=0), "bandwidth: expected a positive.*got 0"),
        (lambda: cknna(torch.ones(2, 10, 4)), "CKNNA with k=10 needs at least 11 samples, got 10"),
        (lambda: mutual_knn(torch.ones(2, 11, 4)), "neighbours with k=10 needs at least 12 samples, got 11"),
        (lambda: mutual_knn(TWO, k=0), "k: expected at least 1 neighbour, got 0"),
        (lambda: rsa(torch.ones(2, 2, 4)), "RSA needs at least 3 samples, got 2"),
        (lambda: rsa(TWO, distance="cosine"), "distance: expected one of euclidean, correlation, got .cosine."),
        (lambda: procrustes(torch.ones(2, 1, 4)), "Procrustes similarity needs at least 2 samples, got 1"),
        (lambda: mean_cca(torch.ones(2, 2, 4)), "mean CCA needs at least 3 samples, got 2"),
        (lambda: mean_cca(related_layers(7, 6)), "mean CCA needs at least 8 samples.*got 7, which a layer of rank 6"),
        (lambda: mean_cca(related_layers(7, 9)), "mean CCA needs at least 8 samples, and more where D is larger"),
        (lambda: regression_r2(related_layers(7, 6)), "regression R² needs at least 8 samples.*got 7"),
        (lambda: pwcca(related_layers(12, 6)), "PWCCA needs at least 13 samples for two layers of ranks 6 and 6"),
        (lambda: svcca(TWO, variance=0), "Expected variance above 0 and at most 1, but got 0"),
        (lambda: procrustes(TWO, torch.ones(2, 4, 3)), "other: expected the same 5 samples as features.*got 4"),
        (lambda: procrustes(TWO, torch.ones(5, 3)), r"other: expected \(L, N, D\).*got shape \(5, 3\)"),
    ],
)
def test_errors(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
