"""torchmetrics' own metrics as measures: definitions by another library, two sets, and what does not compare layers."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchmetrics
from sklearn.metrics import mean_squared_error, r2_score
from torch import Tensor

from layersim.errors import UserError
from layersim.similarity import LinearCKA, Measure, PairMeasure, linear_cka
from layersim.similarity.measure import as_measures

from .references import related_layers


def test_each_pair_of_layers_is_given_to_the_metric_and_samples_are_capped_as_any_measures() -> None:
    features = related_layers(60, 6, layers=4).double()
    measure = PairMeasure(torchmetrics.R2Score(multioutput="variance_weighted"), max_samples=40)
    for rows in torch.arange(60).split(7):
        measure.update(features[:2, rows], rows, other=features[2:, rows])
    kept = measure.kept().features
    assert kept.shape == (2, 40, 6)
    others = measure.kept().other
    expected = [
        [r2_score(other.numpy(), layer.numpy(), multioutput="variance_weighted") for other in others] for layer in kept
    ]
    torch.testing.assert_close(measure.compute(), torch.tensor(expected).double(), rtol=0, atol=1e-6)


def test_its_own_state_stays_and_what_it_declares_is_taken_over() -> None:
    error = torchmetrics.MeanSquaredError()
    error.update(torch.zeros(2), torch.full((2,), 3.0))
    measure, features = PairMeasure(error), related_layers(20, 4, layers=3)
    measure.update(features)
    expected = mean_squared_error(features[0].numpy(), features[2].numpy())
    assert measure.compute()[0, 2].item() == pytest.approx(expected, rel=1e-6)
    assert error.compute() == 9
    assert (measure.label, measure.better, measure.value_range) == ("MeanSquaredError", "lower", (None, None))
    assert math.isnan(measure.identical)


def test_a_measure_of_ones_own_is_a_function_and_four_lines() -> None:
    class Mine(Measure):
        label = "twice CKA"
        value_range = (0, 2)
        identical = 2.0
        function = staticmethod(lambda features, other=None: 2 * linear_cka(features, other, estimator="biased"))

    features = related_layers(50, 6, layers=3)
    measure = as_measures({"mine": Mine(max_samples=None)})["mine"]
    measure.update(features)
    theirs = LinearCKA(estimator="biased")
    theirs.update(features)
    torch.testing.assert_close(measure.compute(), 2 * theirs.compute())
    torch.testing.assert_close(measure.interval(0.9).high, 2 * theirs.interval(0.9).high, rtol=0, atol=1e-6)
    assert measure.options == {"max_samples": None}
    assert measure.properties is None


class Distance(Measure):
    label, value_range, identical = "mean distance", (0, None), 0.0

    def function(self, features: Tensor, other: Tensor | None = None) -> Tensor:
        theirs = features if other is None else other
        return (features[:, None] - theirs[None]).norm(dim=-1).mean(-1)


def test_a_distance_says_that_it_is_one() -> None:
    class Unsaid(Distance):
        identical = 1.0

    near, unrelated = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(0))
    features = torch.stack([near, near + 0.01, unrelated])
    with pytest.raises(UserError, match=r"gives 0 for a layer against itself, but Unsaid\.identical is 1: set it"):
        Unsaid().values_of(features)
    measure = Distance()
    measure.update(features)
    p = measure.null(40).p_family
    assert p[0, 1] <= 0.05 < p[0, 2]


@pytest.mark.parametrize("form", [Tensor.long, lambda counts: counts.numpy(), lambda counts: counts.tolist()])
def test_a_function_may_give_numbers_of_any_kind(form: Callable[[Tensor], Any]) -> None:
    class Signs(Measure):
        label, value_range, identical = "equal signs", (0, None), math.nan
        better = "higher"

        def function(self, features: Tensor, other: Tensor | None = None) -> Any:
            theirs = features if other is None else other
            return form(self.counts(features, theirs))

        def counts(self, features: Tensor, theirs: Tensor) -> Tensor:
            return ((features[:, None] > 0) == (theirs[None] > 0)).sum((2, 3)).double()

    features = related_layers(60, 6, layers=3)
    measure = Signs()
    measure.update(features)
    expected = measure.counts(features, features)
    torch.testing.assert_close(measure.compute(), expected)
    assert measure.interval().low.isfinite().all()
    torch.testing.assert_close(measure.null(40).value, expected)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            torchmetrics.CosineSimilarity(reduction=None),
            r"CosineSimilarity gives shape \(20,\) for two layers, expected one",
        ),
        (
            torchmetrics.PearsonCorrCoef(),
            r"PearsonCorrCoef cannot compare two layers, \(20, 4\) each: .*Choose a metric",
        ),
    ],
)
def test_a_metric_that_does_not_compare_layers_is_refused(metric: torchmetrics.Metric, message: str) -> None:
    measure = PairMeasure(metric)
    measure.update(related_layers(20, 4))
    with pytest.raises(UserError, match=message):
        measure.compute()
