"""What chance makes of a similarity: exact under independence, the published equations, and errors."""

import math
import os
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from scipy.stats import binom
from torch import Tensor
from torchmetrics import CosineSimilarity as TorchmetricsCosine
from torchmetrics import MeanMetric, MeanSquaredError

from layersim.errors import UserError
from layersim.similarity import (
    CKNNA,
    PWCCA,
    RBFCKA,
    RSA,
    SVCCA,
    AngularDistance,
    CosineSimilarity,
    LinearCKA,
    MeanCCA,
    MutualKNN,
    Null,
    PairMeasure,
    Procrustes,
    RegressionR2,
    StreamedCKA,
    linear_cka,
)
from layersim.similarity.measure import Measure
from layersim.similarity.null import shuffled

from .every_measure import METRICS, function_of
from .references import reference_hsic1, related_layers

SAMPLES, PERMUTATIONS, SEED = 60, 39, 7
UNKEPT = ("cosine none", "cosine components", "angular none", "angular components")
FEATURES = related_layers(SAMPLES, 5, layers=4, seed=2) + 3 * torch.randn(4, SAMPLES, 5)
OTHER = torch.cat([FEATURES[:1] + 2 * torch.randn(1, SAMPLES, 5), torch.randn(2, SAMPLES, 5)])
each_metric = pytest.mark.parametrize("name", [name for name in METRICS if name != "cka minibatch"])


def null_of(metric: Measure, features: Tensor, other: Tensor | None = None, batch: int = 25, **drawn: int) -> Null:
    metric.expect_null(**drawn)
    for index in torch.arange(features.shape[1]).split(batch):
        metric.update(features[:, index], index, other=None if other is None else other[:, index])
    return metric.null(**drawn)


def made(name: str) -> Measure:
    return METRICS[name](max_samples=1000) if name in UNKEPT else METRICS[name]()


def reference(values: list[Tensor], identical: float) -> dict[str, Tensor]:
    """Gröger et al. 2026, algorithms 1 and 2 of (L, M) values whose first are the observed, cell by cell."""
    sign = -1 if identical == 0 else 1
    shape, count = values[0].shape, len(values)
    maxima = [max((sign * value).flatten().tolist()) for value in values]
    p, family, calibrated = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    for row in range(shape[0]):
        for column in range(shape[1]):
            cell = [sign * float(value[row, column]) for value in values]
            tau = sorted(cell)[math.ceil(0.95 * count - 1e-9) - 1]
            p[row, column] = (1 + sum(value >= cell[0] - 1e-12 for value in cell[1:])) / count
            family[row, column] = (1 + sum(value >= cell[0] - 1e-12 for value in maxima[1:])) / count
            calibrated[row, column] = max(0.0, (cell[0] - tau) / (sign * identical - tau))
    return {"p": p, "p_family": family, "calibrated": calibrated}


@each_metric
def test_of_two_models_each_metric_has_the_null_of_its_function(name: str) -> None:
    ours = null_of(metric := made(name), FEATURES, OTHER, permutations=PERMUTATIONS, seed=SEED)
    function, orders = function_of(metric), shuffled(torch.arange(SAMPLES), PERMUTATIONS, SEED)
    values = [function(FEATURES.double(), OTHER[:, order].double()) for order in orders]
    for part, expected in reference(values, metric.identical).items():
        torch.testing.assert_close(getattr(ours, part), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.value, metric.compute(), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.mean, torch.stack(values[1:]).mean(0), rtol=0, atol=1e-6)
    assert (ours.permutations, ours.seed) == (PERMUTATIONS, SEED)
    assert ((ours.calibrated > 0) == (ours.p <= 0.05)).all()
    assert (ours.p <= ours.p_family).all()


@each_metric
def test_of_one_model_the_diagonal_is_left_out_and_a_pair_is_one_cell(name: str) -> None:
    ours = null_of(metric := made(name), FEATURES, permutations=PERMUTATIONS, seed=SEED)
    function, orders = function_of(metric), shuffled(torch.arange(SAMPLES), PERMUTATIONS, SEED)
    values = [function(FEATURES.double(), FEATURES[:, order].double()) for order in orders]
    assert metric.properties is not None
    if metric.properties.symmetric:
        values = [value.triu(1) + value.triu(1).mT for value in values]
    nothing = torch.full((4,), -math.inf if metric.identical else math.inf).diag().nan_to_num(0)
    off = ~torch.eye(4, dtype=torch.bool)
    expected = reference([value + nothing for value in values], metric.identical)
    for part in ("p", "p_family", "calibrated"):
        found = getattr(ours, part)
        torch.testing.assert_close(found[off], expected[part][off], rtol=0, atol=1e-6)
        assert found.diagonal().isnan().all()
        assert not metric.properties.symmetric or torch.equal(found[off], found.mT[off])
    torch.testing.assert_close(ours.value, metric.compute(), rtol=0, atol=1e-6)


def test_of_minibatches_each_group_is_permuted_by_its_own_positions() -> None:
    features, batch = FEATURES.double(), 16
    ours = null_of(LinearCKA(batch_size=batch), FEATURES, permutations=PERMUTATIONS, seed=SEED)
    sums = torch.zeros(1 + PERMUTATIONS, 4, 4, dtype=torch.float64)
    for index in torch.arange(SAMPLES).split(batch):
        grams = [x @ x.mT for x in features[:, index] - features[:, index].mean(1, keepdim=True)]
        for number, order in enumerate(shuffled(index, PERMUTATIONS, SEED)):
            for row, column in torch.triu_indices(4, 4).T.tolist():
                permuted = grams[column][order][:, order]
                sums[number, row, column] += reference_hsic1(grams[row], permuted)
    own = sums[0].diagonal()
    values = sums.triu(1) / own.outer(own).sqrt()
    expected = reference([value + value.mT - torch.eye(4) for value in values], 1.0)
    off = ~torch.eye(4, dtype=torch.bool)
    for part in ("p", "p_family", "calibrated"):
        torch.testing.assert_close(getattr(ours, part)[off], expected[part][off], rtol=0, atol=1e-6)
    assert len({tuple(shuffled(index, 1, SEED)[1].tolist()) for index in torch.arange(48).split(16)}) == 3


@pytest.mark.parametrize("order", ["as they are", "shuffled"])
@pytest.mark.parametrize("batch", [16, 23, 60])
def test_neither_order_nor_batches_matter(order: str, batch: int) -> None:
    expected = null_of(LinearCKA(batch_size=16), FEATURES, OTHER, permutations=PERMUTATIONS, seed=SEED)
    metric = LinearCKA(batch_size=16)
    metric.expect_null(PERMUTATIONS, SEED)
    generator = torch.Generator().manual_seed(0)
    every = torch.arange(SAMPLES) if order == "as they are" else torch.randperm(SAMPLES, generator=generator)
    for index in every.split(batch):
        metric.update(FEATURES[:, index], index, other=OTHER[:, index])
    ours = metric.null(PERMUTATIONS, SEED)
    assert torch.equal(ours.p, expected.p)
    torch.testing.assert_close(ours.calibrated, expected.calibrated, rtol=0, atol=1e-12)


def one_value(measure: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
    return measure(x[None], y[None])[0, 0]


def test_the_package_finds_the_same_numbers() -> None:
    package = pytest.importorskip("calibrated_similarity")
    ours, theirs = FEATURES.double(), OTHER.double()
    orders = shuffled(torch.arange(SAMPLES), PERMUTATIONS, SEED)
    for name in ("cka debiased", "rbf cka biased", "mutual knn", "procrustes", "regression"):
        found = null_of(metric := made(name), ours, theirs, permutations=PERMUTATIONS, seed=SEED)
        similarity = partial(one_value, function_of(metric))

        def drawn(places: list[Tensor]) -> dict[str, object]:
            return {"K": PERMUTATIONS, "perm_fn": lambda n, device: places.pop(0)}

        for row, column in ((0, 0), (1, 2), (3, 1)):
            score, p, tau = package.calibrate(ours[row], theirs[column], similarity, **drawn([*orders[1:]]))
            cell = [getattr(found, part)[row, column].item() for part in ("calibrated", "p", "threshold")]
            assert cell == pytest.approx([float(score), float(p), float(tau)], abs=1e-6)
        score, p, tau = package.calibrate_layers([*ours], [*theirs], similarity, agg="max", **drawn([*orders[1:]]))
        assert found.p_family.flatten()[found.value.argmax()].item() == pytest.approx(float(p), abs=1e-6)


TWELVE: dict[str, tuple[Callable[[], Measure], tuple[int, ...]]] = {
    # with the widths that the 40 samples are looked at in: D ÷ N from 0.1 to 10, or to what the measure refuses
    "cosine": (CosineSimilarity, (4, 16, 40, 400)),
    "angular distance": (partial(AngularDistance, max_samples=40), (4, 16, 40, 400)),
    "linear CKA": (partial(LinearCKA, estimator="debiased"), (4, 16, 40, 400)),
    "RBF CKA": (RBFCKA, (4, 16, 40, 400)),
    "CKNNA": (CKNNA, (4, 16, 40, 400)),
    "mutual neighbours": (MutualKNN, (4, 16, 40, 400)),
    "RSA": (RSA, (4, 16, 40, 400)),
    "Procrustes": (Procrustes, (4, 16, 40, 400)),
    "mean CCA": (MeanCCA, (4, 12, 25, 37)),
    "SVCCA": (partial(SVCCA, variance=0.8), (4, 16, 40, 400)),
    "PWCCA": (PWCCA, (4, 8, 15, 19)),
    "regression": (RegressionR2, (4, 12, 25, 37)),
}
PAIRS = 1000 if os.environ.get("LAYERSIM_LONG") else 200


def pair(number: int, width: int, related: float = 0.0) -> tuple[Tensor, Tensor]:
    """(1, 40, D) twice, independent but for what is related."""
    x, y = torch.randn(2, 1, 40, width, generator=torch.Generator().manual_seed(number)).double()
    return x, related * x + y


@pytest.mark.parametrize("name", TWELVE)
def test_unrelated_features_are_beyond_chance_once_in_twenty(name: str) -> None:
    make, widths = TWELVE[name]
    found = [
        null_of(make(), *pair(number, widths[number % 4]), batch=40, permutations=19, seed=number).p.item()
        for number in range(PAIRS)
    ]
    low, high = binom.interval(0.9999, PAIRS, 0.05)
    assert low <= sum(p <= 0.05 for p in found) <= high
    low, high = binom.interval(0.9999, PAIRS, 0.5)
    assert sum(p <= 0.5 for p in found) <= high
    assert sum(p <= 0.5 for p in found) >= low or name == "mutual neighbours"  # counts, of which many are equal
    assert len(set(found)) > 15


@pytest.mark.parametrize("name", TWELVE)
def test_the_control_related_features_are_beyond_chance(name: str) -> None:
    make, widths = TWELVE[name]
    for number in range(4):
        null = null_of(make(), *pair(number, widths[number], related=3.0), batch=40, permutations=19)
        assert null.p.item() == 0.05
        assert null.calibrated.item() > 0


def test_the_control_wrong_nulls_fail() -> None:
    """Columns permuted say nothing; and without the data as they are among the orders too many are beyond chance."""
    metric = LinearCKA(estimator="debiased")
    x, y = pair(0, 16, related=3.0)
    columns = [linear_cka(x, y[..., order], estimator="debiased") for order in shuffled(torch.arange(16), 19, 0)]
    assert metric.null_of(torch.stack(columns), 0, alone=False).p.item() == 1.0
    draws = torch.randn(4000, 21, generator=torch.Generator().manual_seed(0))
    without_one = (draws[:, 1:] >= draws[:, :1]).double().mean(1) <= 0.05
    with_one = [metric.null_of(draw[:, None, None].double(), 0, alone=False).p.item() <= 0.05 for draw in draws]
    low, high = binom.interval(0.9999, 4000, 1 / 21)
    assert low <= sum(with_one) <= high < int(without_one.sum())


def test_over_the_map_one_in_twenty_has_a_cell_beyond_chance() -> None:
    maps = [torch.randn(4, 40, 6, generator=torch.Generator().manual_seed(number)) for number in range(PAIRS)]
    metric = partial(LinearCKA, estimator="debiased")
    nulls = [null_of(metric(), x, batch=40, permutations=19, seed=number) for number, x in enumerate(maps)]
    low, high = binom.interval(0.9999, PAIRS, 0.05)
    assert low <= sum(bool((null.p_family <= 0.05).any()) for null in nulls) <= high
    assert sum(bool((null.p <= 0.05).any()) for null in nulls) > high  # the control: six cells, each by itself


def test_orders_are_the_same_for_all_and_every_one_is_as_likely() -> None:
    orders = shuffled(torch.arange(4), 24_000, 3)
    assert orders[0].tolist() == [0, 1, 2, 3]
    counts = torch.unique(orders[1:], dim=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 60  # χ² of 23 degrees of freedom: one in thirty thousand
    assert torch.equal(shuffled(torch.arange(9), 5, 3), shuffled(torch.arange(9), 8, 3)[:6])
    assert not torch.equal(shuffled(torch.arange(9), 5, 3), shuffled(torch.arange(9), 5, 4))
    assert shuffled(torch.arange(6), 2, 0).tolist() == SHUFFLED, "on every machine"


SHUFFLED = [[0, 1, 2, 3, 4, 5], [5, 3, 0, 4, 1, 2], [3, 1, 5, 4, 2, 0]]


def test_orders_that_give_the_same_value_count_whatever_is_rounded() -> None:
    """One sample differs from all others: what leaves it in its place changes nothing."""
    features = torch.zeros(2, 12, 3)
    features[0, 4], features[1, 4] = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.7, -0.1, 0.3])
    in_place = (shuffled(torch.arange(12), 999, 0)[:, 4] == 4).double().mean().item()
    for metric in (LinearCKA(estimator="biased"), Procrustes(), CosineSimilarity()):
        ours = null_of(metric, features, permutations=999).p[0, 1].item()
        assert ours == in_place
    assert 0.05 < in_place < 0.12


@pytest.mark.parametrize("name", METRICS)
def test_a_layer_without_a_value_has_no_null_and_one_warning(name: str) -> None:
    features = FEATURES.clone()
    features[1] = torch.nan
    metric = made(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said of the value
        null = null_of(metric, features, permutations=19)
    missing = torch.eye(4, dtype=torch.bool)
    missing[1], missing[:, 1] = True, True
    for part in (null.p, null.p_family, null.calibrated):
        assert torch.equal(part.isnan(), missing)
    clean = null_of(made(name), FEATURES[[0, 2, 3]], permutations=19)
    rest = torch.tensor([0, 2, 3])
    torch.testing.assert_close(null.p_family[rest][:, rest], clean.p_family, rtol=0, atol=0, equal_nan=True)
    with pytest.warns(UserWarning, match="NaN for layer 2 "):
        metric.compute()


def test_a_metric_of_torchmetrics_has_a_null_where_it_says_what_is_alike() -> None:
    error, cosine = PairMeasure(MeanSquaredError()), PairMeasure(TorchmetricsCosine(reduction="mean"))
    x = torch.randn(1, 40, 6)
    near, far = x + 0.1 * torch.randn(1, 40, 6), torch.randn(1, 40, 6)
    for metric in (error, cosine):
        null = null_of(metric, x, torch.cat([near, far]), permutations=39)
        assert null.p[0, 0].item() == 1 / 40
    gap = null_of(PairMeasure(MeanSquaredError()), x, near, permutations=39)
    assert gap.calibrated.item() == pytest.approx(gap.threshold.item() - gap.value.item())
    unknown = PairMeasure(MeanMetric())
    with pytest.raises(UserError, match="MeanMetric does not say whether a high value or a low one"):
        unknown.null_of(torch.zeros(20, 1, 1), 0, alone=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RSA().expect_null(18), "at least 19 permutations, as with fewer no p can reach 0.05, got 18"),
        (lambda: LinearCKA().expect_null(0), "at least 19 permutations.*got 0"),
        (lambda: AngularDistance().expect_null(), "angular distance keeps no samples.*set max_samples, such as 4096"),
        (lambda: CosineSimilarity(centering="none").null(), "cosine similarity keeps no samples.*set max_samples"),
        (lambda: StreamedCKA().expect_null(), r'choose LinearCKA\(estimator="debiased", max_samples=4096\)'),
        (
            lambda: [metric := LinearCKA(), metric.update(FEATURES), metric.null(50, 1)],
            r"linear CKA keeps no samples.*call expect_null before the first update, or choose LinearCKA\(estimator",
        ),
        (lambda: null_of(Procrustes(), FEATURES[:, :4], permutations=24), "4 samples have 23 other orders, got 24"),
        (lambda: null_of(LinearCKA(batch_size=4), FEATURES[:, :4], permutations=24), "4 samples have 23 other"),
        (lambda: null_of(RSA(), FEATURES[:, :2], permutations=19), "2 samples have 1 other orders, got 19"),
        (lambda: null_of(CKNNA(k=10), FEATURES[:, :9], permutations=19), "CKNNA with k=10 needs at least 11 samples"),
        (lambda: null_of(LinearCKA(), FEATURES[:, :3], permutations=19), "needs at least 4 samples, got 3"),
        (lambda: null_of(CosineSimilarity(), FEATURES, torch.randn(1, SAMPLES, 9)), "needs equal widths"),
    ],
)
def test_errors(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_as_many_permutations_as_there_are_orders() -> None:
    null_of(Procrustes(), FEATURES[:, :4], permutations=23)
    null_of(LinearCKA(batch_size=4), FEATURES[:, :8], permutations=575)


def test_a_null_of_minibatches_is_announced_before_the_samples_come() -> None:
    late = LinearCKA(batch_size=16)
    late.update(FEATURES[:, :32])
    with pytest.raises(UserError, match="null: expect_null comes before the first update: reset the metric in between"):
        late.expect_null(19)
    assert late.expected is None
    late.reset()
    late.expect_null(19)
    late.update(FEATURES)
    late.expect_null(19)  # as before
    with pytest.raises(UserError, match="expect_null comes before the first update"):
        late.expect_null(19, seed=1)
    again = null_of(LinearCKA(batch_size=16), FEATURES, permutations=19)
    torch.testing.assert_close(late.null(19).p, again.p, rtol=0, atol=0, equal_nan=True)
    kept = RSA()
    kept.update(FEATURES)
    kept.expect_null(19)  # its samples are there to permute
    assert kept.expected == (19, 0)


@pytest.mark.parametrize("metric", [LinearCKA(), RSA(), AngularDistance()])
def test_what_is_refused_is_not_expected(metric: Measure) -> None:
    with pytest.raises(UserError, match="null: "):
        metric.expect_null(18)
    assert metric.expected is None


def test_two_models_with_equal_layers_are_two_models() -> None:
    """Their diagonal is compared as well: a layer with its equal is far from chance, not left out."""
    for estimator in ("minibatch", "debiased"):
        pair, alone = (
            null_of(LinearCKA(estimator=estimator), FEATURES, other, permutations=39)
            for other in (FEATURES.clone(), None)
        )
        assert (pair.p.diagonal() == 1 / 40).all()
        assert alone.p.diagonal().isnan().all(), "the control: one model"


def test_pwcca_has_a_null_where_it_has_a_value() -> None:
    """Ranks 12 and 2 fit into 17 samples; a layer's own rank twice does not, and is no cell of the null."""
    draw = torch.Generator().manual_seed(0)
    wide, narrow = torch.randn(17, 12, generator=draw), torch.randn(17, 2, generator=draw)
    layers = torch.stack([wide, torch.cat([narrow, torch.zeros(17, 10)], dim=1)])
    null = null_of(PWCCA(), layers, permutations=39)
    torch.testing.assert_close(null.value, function_of(PWCCA())(layers), rtol=0, atol=1e-9)
    assert null.p.isnan().tolist() == [[True, False], [False, True]]
    with pytest.raises(UserError, match="PWCCA needs at least 25 samples for two layers of ranks 12 and 12"):
        null_of(PWCCA(), layers, layers.clone(), permutations=39)
