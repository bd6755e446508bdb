"""Metrics keep the shape of what they compute, also where it is one number."""

import importlib
import pkgutil
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

import layersim.metrics
import layersim.similarity
from layersim.similarity import CosineSimilarity, LinearCKA
from layersim.similarity.layer_metric import LayerMetric


def counter(base: Any) -> Any:
    class Counts(base):  # type: ignore[misc]
        def __init__(self, num_layers: int) -> None:
            super().__init__()
            self.add_state("counts", torch.zeros(num_layers), dist_reduce_fx="sum")

        def update(self, values: Tensor) -> None:
            self.counts += values

        def compute(self) -> tuple[Tensor, Tensor]:
            return self.counts, self.counts.sum()

    return Counts


@pytest.mark.parametrize("layers", [1, 2])
def test_one_layer_is_a_layer(layers: int) -> None:
    ours, control = counter(LayerMetric)(layers), counter(Metric)(layers)
    for metric in (ours, control, deepcopy(ours)):
        metric.update(torch.ones(layers))
        values, total = metric.compute()
        assert values.shape == (() if metric is control and layers == 1 else (layers,))
        assert total == layers
        assert total.shape == ()


def test_what_was_computed_stays_when_the_state_moves_on() -> None:
    metric = counter(LayerMetric)(1)
    metric.update(torch.ones(1))
    first, _ = metric.compute()
    metric.update(torch.ones(1))
    assert (first.item(), metric.compute()[0].item()) == (1, 2)


@pytest.mark.parametrize("measure", [CosineSimilarity(), LinearCKA(), LinearCKA(estimator="debiased")])
def test_one_layer_is_alike_to_itself(measure: Any) -> None:
    measure.update(torch.randn(1, 64, 5), torch.arange(64))
    torch.testing.assert_close(measure.compute(), torch.ones(1, 1, dtype=torch.float64))


def test_every_metric_of_ours_keeps_its_shape() -> None:
    """Whoever adds one that squeezes breaks the model of one layer."""
    for package in (layersim.metrics, layersim.similarity):
        for file in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{file.name}")
    ours, found = [Metric], set()
    while ours:
        ours += (below := ours.pop().__subclasses__())
        found |= {made for made in below if made.__module__.startswith("layersim.")}
    assert len(found) > 15
    assert all(issubclass(made, LayerMetric) for made in found)
