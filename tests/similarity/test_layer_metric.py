"""Metrics keep the shape of what they compute, also where it is one number."""

import importlib
import pkgutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torchmetrics import Metric, MetricCollection

import layersim.metrics
import layersim.similarity
from layersim.metrics import KeptSamples, LayerF1, LayerGeometry
from layersim.outputs import LayerFeatures, LayerOutput, Readout
from layersim.similarity import RBFCKA, RSA, AngularDistance, CosineSimilarity, LinearCKA, Procrustes
from layersim.similarity.layer_metric import LayerMetric, join


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


class OfAllKinds(Metric):
    """Somebody's metric, with every kind of state that torchmetrics joins."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(3), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("largest", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="max")
        self.add_state("middle", torch.zeros(()), dist_reduce_fx="mean")
        self.add_state("each", torch.zeros(2), dist_reduce_fx=None)
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("loose", [], dist_reduce_fx=None)

    def update(self, number: int) -> None:
        self.total += torch.arange(3) * number
        self.count += number
        self.largest = torch.tensor([number, -number], dtype=torch.float64)
        self.middle += number
        self.each += number
        for rows in range(number):
            self.rows.append(torch.full((rows, 2), float(number)))
            self.loose.append(torch.full((2,), number * 10 + rows))

    def compute(self) -> None:
        return None


def joining(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    theirs = OfAllKinds()
    theirs.update(2)  # torchmetrics itself gathers lists of one length alone
    ours, nothing = deepcopy(theirs), OfAllKinds()
    ours.rows[:] = [rows + rank for rows in ours.rows]
    theirs.rows[:] = [rows + rank for rows in theirs.rows]
    theirs.sync()
    join([ours, nothing, counter(LayerMetric)(2)])
    for name in ("total", "count", "largest", "middle", "each"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(torch.cat(ours.rows), theirs.rows)  # type: ignore[arg-type]
    in_turn = [each.tolist() for each in theirs.loose]  # the processes' first, then their second, ...
    assert [each.tolist() for each in ours.loose] == in_turn[::2] + in_turn[1::2]
    assert nothing.rows == nothing.loose == []
    assert nothing.count == 0
    dist.destroy_process_group()


def test_all_kinds_of_states_are_joined_as_torchmetrics_joins_them(tmp_path: Path) -> None:
    mp.start_processes(joining, args=(str(tmp_path),), nprocs=2, start_method="fork")


FEATURES = torch.randn(3, 90, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (CosineSimilarity(), AngularDistance()),  # samples, sums
        (CosineSimilarity(centering="none"), CosineSimilarity(centering="components")),
        (RSA(max_samples=30), Procrustes(max_samples=60)),
        (LinearCKA(), LinearCKA(estimator="debiased")),
        (LinearCKA(batch_size=32), LinearCKA(batch_size=16)),
    ],
)
def test_a_collection_shares_no_state_that_options_tell_apart(first: Metric, second: Metric) -> None:
    """The first batch is of vectors whose mean component is zero, and smaller than a cap and a group."""
    together = MetricCollection({"first": first, "second": second})
    alone = {"first": deepcopy(first), "second": deepcopy(second)}
    for index in torch.arange(90).split(15):
        batch = FEATURES[:, index]
        if index[0] == 0:
            batch = torch.cat([batch[..., :3], -batch[..., :3]], dim=2).mul(10).round()
        for metric in (together, *alone.values()):
            metric.update(batch, index)
    for name, value in together.compute().items():
        assert torch.equal(value, alone[name].compute())


def test_a_collection_shares_what_two_measures_keep_alike() -> None:
    together = MetricCollection([RSA(), RBFCKA()])
    together.update(FEATURES)
    assert list(together.compute_groups.values()) == [["RSA", "RBFCKA"]]


def test_a_collection_keeps_geometries_and_classes_apart() -> None:
    def f1(predictions: Tensor, targets: Tensor) -> LayerOutput:
        none = torch.empty(0)
        features = LayerFeatures(torch.zeros(1, len(targets), 1), targets)
        return LayerOutput(features, Readout(none, predictions[None], none, none, none))

    classes = MetricCollection({"one": LayerF1(1, positive=1), "two": LayerF1(1, positive=2)})
    classes.update(f1(torch.tensor([1, 2]), torch.tensor([1, 2])))
    classes.update(f1(torch.tensor([2, 2]), torch.tensor([1, 2])))
    assert {name: value.item() for name, value in classes.compute().items()} == {"one": 2 / 3, "two": 4 / 5}
    for made in (LayerGeometry, KeptSamples):
        caps = MetricCollection({"few": made(max_samples=4), "all": made(max_samples=None)})
        for batch in FEATURES.split(30, dim=1):
            caps.update(LayerFeatures(batch))
        assert [caps[name].kept().features.shape[1] for name in ("few", "all")] == [4, 90]
