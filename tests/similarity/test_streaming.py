"""The metrics: the function's value whatever the batch size, the order, the gaps and the cap."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from layersim.errors import UserError
from layersim.similarity import (
    CKNNA,
    RBFCKA,
    RSA,
    SVCCA,
    AngularDistance,
    CosineSimilarity,
    LinearCKA,
    MeanCCA,
    MutualKNN,
    linear_cka,
)
from layersim.similarity.measure import Measure
from layersim.similarity.positions import splitmix64

from .every_measure import METRICS, function_of
from .references import related_layers

FEATURES = related_layers(150, 12)
STREAMED = [name for name in METRICS if name.startswith(("cosine", "cka"))]
WHOLE = [name for name in METRICS if name not in STREAMED]  # they need a number of samples of their own
each_metric = pytest.mark.parametrize("name", STREAMED)


def feed(metric: Measure, features: Tensor, order: Tensor, batch: int, numbered: bool = True) -> Tensor:
    for index in order.split(batch):
        metric.update(features[:, index], index if numbered else None)
    return metric.compute()


def same(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@each_metric
@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 160), seed=st.one_of(st.none(), st.integers(0, 1000)), samples=st.integers(4, 150))
def test_equals_the_function_on_all_samples(name: str, batch: int, seed: int | None, samples: int) -> None:
    metric = METRICS[name]()
    order = torch.arange(samples)
    if seed is not None:
        order = order[torch.randperm(samples, generator=torch.Generator().manual_seed(seed))]
    same(feed(metric, FEATURES, order, batch), function_of(metric)(FEATURES[:, :samples]))


@each_metric
@pytest.mark.parametrize("batch", [16, 7, 150])
def test_numbers_the_samples_itself(name: str, batch: int) -> None:
    metric = METRICS[name]()
    same(feed(metric, FEATURES, torch.arange(150), batch, numbered=False), function_of(metric)(FEATURES))


@each_metric
def test_reset_and_forward(name: str) -> None:
    metric = METRICS[name]()
    function = function_of(metric)
    feed(metric, FEATURES, torch.arange(150), 50)
    metric.reset()
    same(metric(FEATURES[:, :48]), function(FEATURES[:, :48]))  # forward gives the batch's own value
    metric(FEATURES[:, 48:112])
    same(metric.compute(), function(FEATURES[:, :112]))


@each_metric
def test_half_precision_and_inference_mode(name: str) -> None:
    metric = METRICS[name]()
    function = function_of(metric)
    half = FEATURES.bfloat16()
    with torch.inference_mode():
        metric.update(half[:, :40], torch.arange(40))
    metric.update(half[:, 40:], torch.arange(40, 150))
    same(metric.compute(), function(half))


def test_groups_are_positions_not_batches() -> None:
    """Even positions only, groups of 16: eight samples in each, whatever the batches were."""
    index = torch.arange(0, 150, 2)
    metric = LinearCKA(batch_size=16)
    for part in index.split(11):
        metric.update(FEATURES[:, part], part)
    same(metric.compute(), linear_cka(FEATURES[:, index], batch_size=8))


@pytest.mark.parametrize("name", METRICS)
def test_a_first_batch_without_samples_changes_nothing(name: str) -> None:
    features = related_layers(200, 8, layers=3)
    metrics = [METRICS[name](), METRICS[name]()]
    metrics[0].update(features[:, :0], torch.arange(0))
    for metric in metrics:
        metric.update(features, torch.arange(200))
    assert torch.equal(metrics[0].compute(), metrics[1].compute())


def test_a_group_of_three_is_left_out() -> None:
    metric = LinearCKA(batch_size=16)
    same(feed(metric, FEATURES, torch.arange(35), 35), linear_cka(FEATURES[:, :32], batch_size=16))


def test_whole_groups_are_used_at_once_and_sequential_batches_hold_little_back() -> None:
    metric = LinearCKA(batch_size=16)
    metric.update(FEATURES[:, :32], torch.arange(32))
    assert metric.features == []
    for index in torch.arange(32, 150).split(7):
        metric.update(FEATURES[:, index], index)
        assert sum(map(len, metric.features)) < 32


@pytest.mark.parametrize(("first", "second"), [((0, 128), (0, 128)), ((0, 128), (40, 41)), ((0, 35), (32, 36))])
@pytest.mark.parametrize("batch", [32, 7])
def test_positions_that_come_again_when_their_group_was_used(
    first: tuple[int, int], second: tuple[int, int], batch: int
) -> None:
    metric = LinearCKA(batch_size=16)
    feed(metric, FEATURES, torch.arange(*first), batch)
    with pytest.raises(UserError, match=f"position {second[0]} came more than once"):
        feed(metric, FEATURES, torch.arange(*second), batch)
    with pytest.raises(UserError, match=f"position {second[0]} came more than once"):
        metric.interval()
    metric.reset()
    same(feed(metric, FEATURES, torch.arange(*first), batch), linear_cka(FEATURES[:, slice(*first)], batch_size=16))


def test_kept_samples_are_copies_in_their_own_dtype() -> None:
    hidden = torch.zeros(4, 10, 50, 12, dtype=torch.bfloat16)
    metric = CosineSimilarity()
    metric.update(hidden[:, :, 0])
    (kept,) = metric.features
    assert kept.dtype == torch.bfloat16
    assert kept.untyped_storage().nbytes() == 4 * 10 * 12 * 2


CAPPED = {
    "cosine": lambda: CosineSimilarity(max_samples=20),
    "cosine none": lambda: CosineSimilarity(centering="none", max_samples=20),
    "debiased": lambda: LinearCKA(estimator="debiased", max_samples=20),
}


@pytest.mark.parametrize("name", CAPPED)
def test_the_cap_chooses_by_position_alone(name: str) -> None:
    chosen = splitmix64(torch.arange(150)).argsort()[:20].sort().values
    assert chosen.tolist() != list(range(20))
    expected = function_of(CAPPED[name]())(FEATURES[:, chosen])
    for seed, batch in [(0, 1), (1, 7), (2, 64), (3, 150)]:
        order = torch.randperm(150, generator=torch.Generator().manual_seed(seed))
        metric = CAPPED[name]()
        same(feed(metric, FEATURES, order, batch), expected)
        assert sum(map(len, metric.features)) <= 40


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("batch", [1, 64])
def test_whole_measures_equal_the_function_in_any_order(name: str, batch: int) -> None:
    metric = METRICS[name]()
    order = torch.randperm(150, generator=torch.Generator().manual_seed(batch))
    same(feed(metric, FEATURES, order, batch), function_of(metric)(FEATURES))


@pytest.mark.parametrize("name", [name for name in WHOLE if not name.startswith("angular")])
def test_whole_measures_of_two_models_choose_the_same_samples_for_both(name: str) -> None:
    metric = METRICS[name](max_samples=40)
    other = related_layers(150, 9, layers=2, seed=4).half()
    for index in torch.randperm(150, generator=torch.Generator().manual_seed(0)).split(7):
        metric.update(FEATURES[:, index], index, other=other[:, index])
        assert sum(map(len, metric.others)) == sum(map(len, metric.features)) <= 80
    chosen = splitmix64(torch.arange(150)).argsort()[:40].sort().values
    same(metric.compute(), function_of(metric)(FEATURES[:, chosen], other[:, chosen]))


@pytest.mark.parametrize("estimator", ["minibatch", "debiased", "biased"])
@pytest.mark.parametrize("batch", [7, 32])
def test_linear_cka_of_two_models(estimator: str, batch: int) -> None:
    other = related_layers(150, 9, layers=1, seed=4)
    metric = LinearCKA(estimator=estimator, batch_size=16)
    for index in torch.arange(150).split(batch):
        metric.update(FEATURES[:, index], index, other=other[:, index])
    same(metric.compute(), linear_cka(FEATURES, other, estimator=estimator, batch_size=16))


def test_splitmix64_known_values() -> None:
    """The generator's first outputs for seed 0 (Vigna's reference program): the hash of 0, γ, 2γ."""
    gamma = 0x9E3779B97F4A7C15
    states = torch.tensor([((k * gamma + 2**63) % 2**64) - 2**63 for k in range(3)])
    outputs = [value % 2**64 for value in splitmix64(states).tolist()]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_a_constant_layer_warns_at_compute_and_only_there() -> None:
    features = FEATURES.clone()
    features[1] = 0.1
    metric = LinearCKA(batch_size=16)
    metric.update(features)
    with pytest.warns(UserWarning, match="NaN for layer 2 "):
        ours = metric.compute()
    assert ours.isnan().sum() == 7


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        (CosineSimilarity(), {"centering": "samples", "max_samples": None}),
        (CosineSimilarity(max_samples=500), {"centering": "samples", "max_samples": 500}),
        (CosineSimilarity(centering="none"), {"centering": "none"}),
        (LinearCKA(), {"estimator": "minibatch", "batch_size": 64}),
        (LinearCKA(estimator="debiased", max_samples=9), {"estimator": "debiased", "max_samples": 9}),
        (AngularDistance(), {"centering": "none"}),
        (RBFCKA(), {"bandwidth": 1.0, "estimator": "biased", "max_samples": 1024}),
        (CKNNA(), {"k": 10, "max_samples": 1024}),
        (MutualKNN(k=5), {"k": 5, "max_samples": 1024}),
        (RSA(), {"distance": "euclidean", "max_samples": 1024}),
        (SVCCA(), {"variance": 0.99, "max_samples": 4096}),
        (MeanCCA(max_samples=None), {"max_samples": None}),
    ],
)
def test_options(metric: Measure, options: dict[str, object]) -> None:
    assert json.loads(json.dumps(metric.options)) == options


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LinearCKA(max_samples=10), 'estimator="minibatch" streams and keeps no samples.*got 10'),
        (lambda: LinearCKA(estimator="biased", max_samples=1), "max_samples: expected at least 2, got 1"),
        (lambda: LinearCKA(batch_size=2), "batch_size: expected at least 4"),
        (lambda: LinearCKA(estimator="full"), "estimator: expected one of"),
        (lambda: CosineSimilarity(max_samples=1), "max_samples: expected at least 2, got 1"),
        (lambda: MutualKNN(max_samples=11), "max_samples: expected at least 12, got 11"),
        (lambda: RSA().update(FEATURES, other=FEATURES[:, :9]), "other: expected the same 150 samples.*got 9"),
        (lambda: AngularDistance().update(FEATURES, other=FEATURES[:, :, :9]), "needs equal widths, got 12 and 9"),
        (lambda: [m := RSA(), m.update(FEATURES), m.update(FEATURES, other=FEATURES)], "other: expected with every"),
        (lambda: CosineSimilarity().update(torch.ones(3, 4)), r"expected \(L, N, D\)"),
        (lambda: CosineSimilarity().update(FEATURES, torch.arange(3)), r"expected \(150,\) integers.*got \(3,\)"),
        (lambda: feed(CosineSimilarity(), FEATURES, torch.arange(1), 1), "needs at least 2 samples, got 1"),
        (lambda: feed(LinearCKA(), FEATURES, torch.arange(3), 1), "needs at least 4 samples, got 3"),
        (lambda: feed(LinearCKA(), FEATURES, torch.arange(5) * 29, 5), "group of 64 consecutive positions.*got none"),
        (lambda: feed(LinearCKA(), FEATURES, torch.arange(8) // 2, 3), "position 0 came more than once"),
        (lambda: feed(LinearCKA(batch_size=4), FEATURES, torch.arange(8) // 2, 8), "position 0 came more than once"),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
