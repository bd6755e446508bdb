"""Metrics of a readout: hand-worked cases, and independence of how samples are batched."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from layersim.errors import UserError
from layersim.metrics import (
    LayerAccuracy,
    LayerCalibration,
    LayerF1,
    LayerLoss,
    RightAtBoth,
    Saturation,
    mean_saturation_layer,
    rise,
    saturated_early,
    saturation_layer,
)
from layersim.metrics.readout import ReadoutMetric
from layersim.outputs import LayerFeatures, LayerOutput, Readout

PREDICTIONS = torch.tensor(
    [
        [1, 0, 2, 3, 3],
        [1, 1, 2, 2, 3],
        [1, 1, 2, 3, 1],
        [1, 1, 0, 3, 1],
    ]
)
TARGETS = torch.tensor([1, 1, 2, 3, 0])


def output(predictions: Tensor, targets: Tensor, losses: Tensor | None = None, loss: float = 0.0) -> LayerOutput:
    layers, samples = predictions.shape
    features = LayerFeatures(torch.zeros(layers, samples, 2), targets, torch.arange(samples))
    losses = torch.zeros(layers) if losses is None else losses
    return LayerOutput(
        features,
        Readout(losses, predictions, torch.ones(layers, samples), torch.empty(0), torch.empty(0)),
        torch.tensor(loss),
    )


def test_saturation_layer_by_hand() -> None:
    # all agree: 1; changes before layer 2: 2; changes at the last: 4; leaves and comes back: 3; last change at 3: 3
    assert saturation_layer(PREDICTIONS).tolist() == [1, 2, 4, 3, 3]


def test_saturation_counts_and_their_summary() -> None:
    metric = Saturation(4)
    metric.update(output(PREDICTIONS[:, :2], TARGETS[:2]))
    metric.update(output(PREDICTIONS[:, 2:], TARGETS[2:]))
    counts = metric.compute()
    assert counts.tolist() == [1, 1, 2, 1]
    assert saturated_early(counts) == pytest.approx(4 / 5)
    assert mean_saturation_layer(counts) == pytest.approx((1 + 2 + 3 + 3 + 4) / 5)


def test_saturation_of_the_papers_figure() -> None:
    """Figure 6a: 98.8 % saturated early and a mean of 4.24 for the aligned model, from its annotated counts."""
    aligned = torch.tensor([1133, 2387, 927, 1020, 1735, 1175, 542, 288, 307, 203, 124, 120])
    assert saturated_early(aligned) == pytest.approx(0.988, abs=1e-3)
    assert mean_saturation_layer(aligned) == pytest.approx(4.24, abs=0.01)


def test_layer_accuracy_by_hand() -> None:
    metric = LayerAccuracy(4)
    metric.update(output(PREDICTIONS[:, :3], TARGETS[:3]))
    metric.update(output(PREDICTIONS[:, 3:], TARGETS[3:]))
    assert metric.compute().tolist() == [3 / 5, 3 / 5, 4 / 5, 3 / 5]
    assert metric.compute().dtype == torch.float64


def test_layer_loss_weighs_ragged_batches_by_their_samples() -> None:
    metric = LayerLoss(2)
    metric.update(output(PREDICTIONS[:2, :3], TARGETS[:3], torch.tensor([1.0, 4.0]), loss=2.0))
    metric.update(output(PREDICTIONS[:2, 3:4], TARGETS[3:4], torch.tensor([5.0, 0.0]), loss=6.0))
    layers, objective = metric.compute()
    assert layers.tolist() == [(3 * 1 + 5) / 4, (3 * 4 + 0) / 4]
    assert objective.item() == (3 * 2 + 6) / 4
    assert layers[0].item() != (1 + 5) / 2, "the mean of batch means, which is wrong"


@pytest.mark.parametrize("make", [LayerAccuracy, LayerF1, RightAtBoth, LayerCalibration])
def test_what_reads_labels_refuses_an_output_without(make: Callable[[int], ReadoutMetric]) -> None:
    metric, without = make(4), output(PREDICTIONS, TARGETS)
    without.features.targets = None
    with pytest.raises(UserError, match="Expected a label for each sample, which this metric reads, but the batch has"):
        metric.update(without)


@pytest.mark.parametrize("make", [LayerAccuracy, LayerF1, RightAtBoth, LayerLoss, Saturation])
@pytest.mark.parametrize("layers", [1, 3])
def test_every_update_is_of_as_many_layers_as_there_are(make: Callable[[int], ReadoutMetric], layers: int) -> None:
    """One layer would count for all, and samples that saturate behind the last would be none."""
    metric = make(2)
    metric.update(output(PREDICTIONS[:2], TARGETS))
    before = {name: state.clone() for name, state in metric.metric_state.items() if isinstance(state, Tensor)}
    with pytest.raises(UserError, match=rf"{make.__name__}: expected .* got \(.*{layers}.*\): set num_layers to"):  # type: ignore[attr-defined]
        metric.update(output(PREDICTIONS[:layers], TARGETS))
    assert all(torch.equal(metric.metric_state[name], state) for name, state in before.items())


@pytest.mark.parametrize("form", [Tensor.numpy, Tensor.tolist])
def test_arrays_and_lists_are_tensors(form: Callable[[Tensor], Any]) -> None:
    assert saturation_layer(form(PREDICTIONS)).tolist() == [1, 2, 4, 3, 3]
    assert rise(form(torch.tensor([[3.0, 2], [2, 4]]))).steps.tolist() == [0.5]
