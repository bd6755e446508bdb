"""Calibration of each layer: torchmetrics and scikit-learn, closed forms, and independence of how samples are split."""

import math

import pytest
import torch
from sklearn.metrics import brier_score_loss
from torch import Tensor
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.functional.classification.calibration_error import _ce_compute

from layersim.metrics.calibration import BINS, LayerCalibration, against_target, calibration, calibration_sums
from layersim.outputs import LayerFeatures, LayerOutput, Readout

DRAW = torch.Generator().manual_seed(0)
SHARPNESS = torch.tensor([0.1, 1.0, 4.0, 60.0], dtype=torch.float64)  # the last is mostly sure to 16 digits
LOGITS = SHARPNESS[:, None, None] * torch.randn(900, 5, generator=DRAW, dtype=torch.float64)
TARGETS = torch.where(
    torch.rand(900, generator=DRAW) < 0.5, LOGITS[1].argmax(1), torch.randint(5, (900,), generator=DRAW)
)


def output(rows: slice) -> LayerOutput:
    log_probabilities, targets = LOGITS[:, rows].log_softmax(-1), TARGETS[rows]
    confidences, predictions = log_probabilities.max(-1)
    _, odds, briers = against_target(log_probabilities, targets.expand(4, -1))
    features = LayerFeatures(torch.zeros(4, len(targets), 1), targets)
    return LayerOutput(features, Readout(torch.zeros(4), predictions, confidences.exp(), odds, briers))


def measured(*parts: slice) -> dict[str, Tensor]:
    metric = LayerCalibration(4)
    for rows in parts:
        metric.update(output(rows))
    return metric.compute()


def test_torchmetrics_and_scikit_learn_say_the_same() -> None:
    found = measured(slice(0, 400), slice(400, 900))
    for layer, logits in enumerate(LOGITS):
        probabilities = logits.softmax(-1)
        confidences, predictions = probabilities.max(-1)
        expected = _ce_compute(confidences, predictions == TARGETS, BINS)  # what the metric does in float32
        assert found["error"][layer].item() == pytest.approx(expected.item(), abs=1e-9)
        metric = MulticlassCalibrationError(5, n_bins=BINS, norm="l1")
        assert found["error"][layer].item() == pytest.approx(metric(probabilities, TARGETS).item(), abs=1e-4)
        brier = brier_score_loss(TARGETS, probabilities.numpy(), labels=range(5), scale_by_half=False)
        assert found["brier"][layer].item() == pytest.approx(brier, abs=1e-9)
        over = probabilities.amax(1).mean() - (logits.argmax(1) == TARGETS).double().mean()
        assert found["overconfidence"][layer].item() == pytest.approx(over.item(), abs=1e-9)
    assert found["overconfidence"][0] < -0.05  # flat logits know more than they say
    assert found["overconfidence"][3] > 0.2


def test_what_is_known_of_the_target_is_the_probabilities_own() -> None:
    log_probabilities = LOGITS.log_softmax(-1)
    likelihoods, odds, briers = against_target(log_probabilities, TARGETS.expand(4, -1))
    probabilities = log_probabilities.exp()
    own = probabilities.gather(-1, TARGETS.expand(4, -1)[..., None]).squeeze(-1)
    torch.testing.assert_close(likelihoods.exp(), own)
    torch.testing.assert_close(odds[:3], own[:3].logit())
    expected = (probabilities - torch.eye(5)[TARGETS]).square().sum(-1)
    torch.testing.assert_close(briers, expected, rtol=1e-9, atol=1e-15)


def test_probabilities_of_zero_and_one() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    likelihoods, odds, briers = against_target(probabilities.log(), torch.tensor([0, 1, 0, 2]))
    torch.testing.assert_close(briers, torch.tensor([0.25 + 0.09 + 0.04, 0.25 + 0.49 + 0.04, 0.0, 2.0]))
    assert likelihoods[2:].tolist() == [0, -math.inf]
    assert odds[2:].tolist() == [math.inf, -math.inf]
    far, _, _ = against_target(torch.tensor([[200.0, 0.0]]).log_softmax(-1), torch.tensor([0]))
    assert far.item() == 0
    assert against_target(torch.tensor([[200.0, 0.0]]).log_softmax(-1), torch.tensor([0]))[1].item() == 200


def test_a_reliability_diagram_by_hand() -> None:
    confidences = torch.tensor([[0.95, 0.95, 0.94, 0.94, 0.4, 1.0]], dtype=torch.float64)
    right = torch.tensor([[True, True, True, False, False, True]])
    found = calibration(calibration_sums(confidences, right, torch.zeros(1, 6)))
    gap = found["gap"][0]
    assert gap.isnan().sum() == BINS - 2
    assert gap[6].item() == pytest.approx(0.4)  # none of one is right
    assert gap[14].item() == pytest.approx((0.95 * 2 + 0.94 * 2 + 1) / 5 - 4 / 5)
    # Wilson's interval of 4 in 5 is 0.3755 … 0.9638
    mean = (0.95 * 2 + 0.94 * 2 + 1) / 5
    assert found["low"][0, 14].item() == pytest.approx(mean - 0.9638, abs=1e-4)
    assert found["high"][0, 14].item() == pytest.approx(mean - 0.3755, abs=1e-4)
    # as torchmetrics has it the sample of exactly 1 is a bin of its own, which is right: (0.4 + |3.78 − 3|) / 6
    assert found["error"].item() == pytest.approx((0.4 + 0.78) / 6)


def test_any_split_gives_the_same() -> None:
    whole, split = measured(slice(0, 900)), measured(slice(0, 7), slice(7, 8), slice(8, 900))
    for name, values in whole.items():
        torch.testing.assert_close(split[name], values, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_a_sample_that_is_counted_twice_is_noticed() -> None:
    assert not torch.allclose(measured(slice(0, 900), slice(0, 300))["error"], measured(slice(0, 900))["error"])
