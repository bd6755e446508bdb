"""Intervals: the jackknife's formula written out, its way through each metric, and how often it holds the truth."""

import math
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.similarity import (
    CKNNA,
    AngularDistance,
    CosineSimilarity,
    Interval,
    LinearCKA,
    MeanCCA,
    angular_distance,
    cosine,
    jackknife,
    linear_cka,
    mutual_knn,
)
from layersim.similarity.intervals import GROUPS, interval_of_replicates
from layersim.similarity.measure import Measure
from layersim.similarity.positions import dealt

from .every_measure import METRICS, function_of
from .references import related_layers

SAMPLES = 160
FEATURES = related_layers(SAMPLES, 6, layers=3)
each_metric = pytest.mark.parametrize("name", METRICS)


def fed(metric: Measure, features: Tensor, batch: int = 64, other: Tensor | None = None) -> Measure:
    for index in torch.arange(features.shape[1]).split(batch):
        metric.update(features[:, index], index, other=None if other is None else other[:, index])
    return metric


def reference(measure: Callable[[Tensor], Tensor], units: Tensor, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Busing et al. 1999, as printed: pseudo-values h θ − (h − 1) θ_(j) with h = n / m_j. Returns both ends.

    `measure` takes the numbers of samples that are left; `units` are the (N,) units that samples belong to.
    """
    theta, every = measure(torch.arange(len(units))), units.unique()
    group = dealt(every, GROUPS)
    pseudo, weights = [], []
    for j in group.unique():
        h = len(every) / int((group == j).sum())
        left = torch.isin(units, every[group != j]).nonzero().flatten()
        pseudo.append(h * theta - (h - 1) * measure(left))
        weights.append(h)
    centre = sum(p / h for p, h in zip(pseudo, weights, strict=True))
    variance = sum((p - centre) ** 2 / (h - 1) for p, h in zip(pseudo, weights, strict=True)) / len(pseudo)
    reach = scipy.stats.t.ppf(0.5 + confidence / 2, len(pseudo) - 1) * variance.sqrt()
    return theta - reach, theta + reach


def test_of_a_mean_it_is_the_error_of_a_mean() -> None:
    """Where groups are of one size, Σ (group mean − mean)² / (G (G − 1)): its own value, and Student's interval."""
    index = torch.cat([(dealt(torch.arange(1000), 4) == group).nonzero().flatten()[:30] for group in range(4)])
    x = torch.randn(1, 120, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = jackknife(lambda x: x.mean((1, 2))[:, None], x, groups=4, confidence=0.9, index=index)
    means = x.view(4, 30).mean(1)
    error = means.std() / 2
    assert ours.standard_error.item() == pytest.approx(error.item(), rel=1e-9)
    low, high = scipy.stats.t.interval(0.9, 3, loc=x.mean().item(), scale=error.item())
    assert (ours.low.item(), ours.high.item()) == pytest.approx((low, high), rel=1e-9)
    assert ours.confidence == 0.9


@each_metric
def test_each_metric_has_the_interval_of_its_function(name: str) -> None:
    metric = fed(METRICS[name](), FEATURES)
    function, interval = function_of(metric), metric.interval(0.9)
    units = torch.arange(SAMPLES) // (40 if name == "cka minibatch" else 1)  # whose unit is the batch
    low, high = reference(lambda left: function(FEATURES[:, left]), units, confidence=0.9)
    assert torch.equal(interval.value, metric.compute())
    torch.testing.assert_close(interval.low, low, rtol=0, atol=1e-5)
    torch.testing.assert_close(interval.high, high, rtol=0, atol=1e-5)
    assert (interval.high - interval.low)[0, 1] > 1e-3
    assert (interval.high - interval.low).diagonal().abs().max() < 1e-6  # a layer against itself is known


@each_metric
def test_neither_order_nor_batches_matter(name: str) -> None:
    expected, metric = fed(METRICS[name](), FEATURES).interval(), METRICS[name]()
    for index in torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0)).split(7):
        metric.update(FEATURES[:, index], index)
    ours = metric.interval()
    torch.testing.assert_close(ours.standard_error, expected.standard_error, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.low, expected.low, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["cosine none", "cka minibatch", "cka debiased", "cka biased", "procrustes"])
def test_two_models(name: str) -> None:
    other = related_layers(SAMPLES, 6, layers=2, seed=5)
    together = fed(METRICS[name](), torch.cat([FEATURES, other])).interval()
    ours = fed(METRICS[name](), FEATURES, other=other).interval()
    torch.testing.assert_close(ours.standard_error, together.standard_error[:3, 3:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize(("scale", "offset"), [(1e-8, 0.0), (1e8, 50.0), (1.0, 50.0)])
def test_hard_numbers_have_the_same_interval(estimator: str, scale: float, offset: float) -> None:
    hard = (FEATURES.double() + offset) * scale
    easy = fed(METRICS[f"cka {estimator}"](), FEATURES.double()).interval()
    exact = fed(METRICS[f"cka {estimator}"](), hard).interval()
    single = fed(METRICS[f"cka {estimator}"](), hard.float()).interval()
    torch.testing.assert_close(exact.standard_error, easy.standard_error, rtol=0, atol=1e-9)
    torch.testing.assert_close(single.standard_error, easy.standard_error, rtol=0, atol=1e-5)


CORRELATIONS = torch.tensor([0.4, 0.9, 0.99])
WIDTH = 5
SETS = 200


def correlated(seed: int, samples: int) -> Tensor:
    """(4, N, D) standard normal layers, the first of which correlates with the others as CORRELATIONS say."""
    noise = torch.randn(4, samples, WIDTH, generator=torch.Generator().manual_seed(seed))
    rho = CORRELATIONS[:, None, None]
    return torch.cat([noise[:1], rho * noise[:1] + (1 - rho**2).sqrt() * noise[1:]])


def expected_cosine() -> Tensor:
    """Of normal vectors whose components correlate by ρ: ρ (2 / D) (Γ((D + 1)/2) / Γ(D/2))² ₂F₁(½, ½; D/2 + 1; ρ²)."""
    rho, half = CORRELATIONS.double(), WIDTH / 2
    ratio = math.gamma(half + 0.5) / math.gamma(half)
    return rho / half * ratio**2 * torch.from_numpy(scipy.special.hyp2f1(0.5, 0.5, half + 1, rho.numpy() ** 2))


POPULATION: dict[str, tuple[Callable[[], Measure], int, Callable[[], Tensor]]] = {
    # the metric, N, the value that all samples there could be would have
    "cosine none": (partial(CosineSimilarity, centering="none"), 200, expected_cosine),
    "cosine samples": (CosineSimilarity, 200, expected_cosine),
    "angular": (AngularDistance, 200, lambda: angular_distance(correlated(-1, 400_000))[0, 1:]),
    # the linear HSIC of normal layers is ‖Σ_xy‖_F²
    "cka debiased": (partial(LinearCKA, estimator="debiased"), 200, lambda: CORRELATIONS.double() ** 2),
    "cka minibatch": (partial(LinearCKA, batch_size=16), 400, lambda: CORRELATIONS.double() ** 2),
}


@pytest.mark.parametrize("name", POPULATION)
def test_nineteen_of_twenty_intervals_hold_the_truth(name: str) -> None:
    make, samples, population = POPULATION[name]
    truth = population()
    intervals = [fed(make(), correlated(seed, samples), batch=samples).interval() for seed in range(SETS)]

    def first_row(part: str) -> Tensor:
        return torch.stack([getattr(interval, part)[0, 1:] for interval in intervals])

    value, low, high = (first_row(part) for part in ("value", "low", "high"))
    held = ((low <= truth) & (truth <= high)).double().mean(0)
    spread = 3 * math.sqrt(0.95 * 0.05 / SETS)
    assert (held - 0.95).abs().max() < spread
    third = (value - truth).abs() <= (high - low) / 2 / 3  # the control: an interval a third as wide
    assert third.double().mean(0).max() < 0.95 - spread
    error = first_row("standard_error").square().mean(0).sqrt()
    torch.testing.assert_close(error / value.std(0), torch.ones(3, dtype=torch.float64), rtol=0, atol=0.15)


def test_the_cosine_of_normal_vectors() -> None:
    ours = cosine(correlated(-1, 400_000), centering="none")[0, 1:]
    torch.testing.assert_close(ours, expected_cosine(), rtol=0, atol=0.003)


def test_samples_drawn_twice_would_count_as_alike() -> None:
    """Why no bootstrap: its values are not about the value, those of samples left out are."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 200, 6, generator=generator)
    for measure in (mutual_knn, partial(linear_cka, estimator="debiased")):
        interval = jackknife(measure, features)
        drawn = [torch.randint(200, (200,), generator=generator) for _ in range(20)]
        bootstrap = torch.stack([measure(features[:, index])[0, 1] for index in drawn])
        left = [torch.randperm(200, generator=generator)[10:] for _ in range(20)]
        left_out = torch.stack([measure(features[:, index])[0, 1] for index in left])
        assert bootstrap.mean() - interval.value[0, 1] > 0.02
        assert abs(left_out.mean() - interval.value[0, 1]) < 0.02


def test_groups_do_not_follow_the_order_of_the_data() -> None:
    groups = dealt(torch.arange(20_000), GROUPS)
    counts = torch.bincount(groups, minlength=GROUPS)
    assert (counts - 1000).abs().max() < 150
    assert torch.bincount(groups[::GROUPS], minlength=GROUPS).min() > 20  # dealt in turn it would be one group


def once(metric: Measure, message: str) -> Interval:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        interval = metric.interval()
    assert [message in str(warning.message) for warning in said] == [True]
    return interval


@each_metric
def test_a_layer_without_a_value_has_no_interval_and_one_warning(name: str) -> None:
    features = FEATURES.clone()
    features[1] = torch.nan
    interval = once(fed(METRICS[name](), features), "similarity is NaN for layer 2 ")
    for part in (interval.value, interval.standard_error, interval.low, interval.high):
        assert part.isnan().tolist() == [[False, True, False], [True] * 3, [False, True, False]]


def test_a_layer_that_varies_in_one_batch_alone_has_a_value_and_no_interval() -> None:
    features = FEATURES.clone()
    features[1, 40:] = 2.5
    interval = once(fed(METRICS["cka minibatch"](), features), "the interval is NaN for 5 pairs of layers")
    assert interval.value.isfinite().all()
    assert interval.low.isnan().sum() == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fed(CosineSimilarity(), FEATURES).interval(95),
            "a confidence above 0 and below 1.*95",
        ),
        (lambda: jackknife(cosine, FEATURES, confidence=1), "a confidence above 0 and below 1, but got 1"),
        (
            lambda: fed(LinearCKA(estimator="biased"), FEATURES).interval(0),
            "a confidence above 0 and below 1, but got 0",
        ),
        (lambda: jackknife(cosine, FEATURES, groups=1), "groups: expected at least 2, got 1"),
        (
            lambda: fed(LinearCKA(), FEATURES[:, :64]).interval(),
            "expected batches of 64 positions in at least 2 groups",
        ),
        (lambda: fed(CosineSimilarity(centering="none"), FEATURES[:, :1]).interval(), "got 1 samples in 1"),
        (lambda: fed(LinearCKA(estimator="debiased"), FEATURES[:, :4]).interval(), "of the 4 samples.*at least 4"),
        (
            lambda: fed(CKNNA(k=5), FEATURES[:, :6]).interval(),
            "of the 6 samples are left out.*needs at least 6 samples",
        ),
        (lambda: fed(MeanCCA(), FEATURES[:, :8]).interval(), "of the 8 samples are left out.*raise max_samples"),
        (lambda: fed(MeanCCA(), FEATURES[:, :2]).interval(), "^mean CCA needs at least 3 samples"),
        (lambda: fed(LinearCKA(), FEATURES[:, :3]).interval(), "^linear CKA.*needs at least 4 samples, got 3"),
    ],
)
def test_errors(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_equal_replicates_have_no_error_whatever_their_groups() -> None:
    value, sizes = torch.full((2, 2), 1e6, dtype=torch.float64), torch.tensor([7] * 19 + [17])
    found = interval_of_replicates(value, [value] * 20, sizes, 0.95, "samples")
    assert torch.equal(found.low, value)
    assert torch.equal(found.high, value)
