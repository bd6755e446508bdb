"""The table against the head's own readout, and what a threshold does to it."""

from typing import Any

import pytest
import torch

from layersim.errors import UserError
from layersim.exits import (
    POLICIES,
    Confidence,
    Patience,
    Policy,
    calibrations,
    exit_table,
    fit_temperatures,
    join_tables,
    summarize,
    table,
)
from layersim.heads import Head, SeparateHeads
from layersim.outputs import LayerFeatures
from tests.exits.readouts import table_of
from tests.tiny import backbone


@pytest.fixture
def head() -> Head:
    head = SeparateHeads(backbone()).eval()
    for classifier in head.classifiers:
        classifier.weight.data *= 40
    return head


@pytest.fixture
def features() -> LayerFeatures:
    draw = torch.Generator().manual_seed(0)
    return LayerFeatures(torch.randn(3, 50, 16, generator=draw).cumsum(dim=0), torch.randint(10, (50,), generator=draw))


def test_the_table_says_what_the_head_says(head: Head, features: LayerFeatures) -> None:
    read = exit_table(head, features, Confidence())
    readout = head(features.values, features.targets, range(3))
    assert torch.equal(read.predictions, readout.predictions)
    torch.testing.assert_close(read.scores, readout.confidences)
    torch.testing.assert_close(read.losses.mean(dim=1), readout.losses)
    assert torch.equal(read.targets, features.targets)
    assert not read.scores.requires_grad


def test_temperatures_divide_each_layers_logits(head: Head, features: LayerFeatures) -> None:
    temperatures = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)
    read = exit_table(head, features, Confidence(), temperatures)
    logits = head.logits(features.values, range(3)).detach() / temperatures.float().view(3, 1, 1)
    expected = table_of(logits, features.targets)
    for column in ("scores", "predictions", "losses", "sureness"):
        torch.testing.assert_close(getattr(read, column), getattr(expected, column))
    plain = table_of(head.logits(features.values, range(3)).detach(), features.targets)
    torch.testing.assert_close(read.untempered, plain.sureness)
    calibrated = calibrations(read)
    for when, one in (("before", plain), ("after", expected)):
        confidences, right = one.scores.double(), (one.predictions == features.targets).double()
        over = (confidences - right).mean(dim=1)
        assert calibrated[when]["overconfidence"] == pytest.approx(over.tolist(), abs=1e-6)
        assert calibrated[when]["brier"] == pytest.approx(one.sureness[1].mean(dim=1).tolist(), abs=1e-6)
        assert all(
            error + 1e-6 >= abs(gap) for error, gap in zip(calibrated[when]["error"], over.tolist(), strict=True)
        )
    with pytest.raises(UserError, match=r"positive temperature for each of the 3 layers, but got \[1\.0, 1\.0\]"):
        exit_table(head, features, Confidence(), torch.ones(2))
    with pytest.raises(UserError, match=r"but got \[1\.0, 0\.0, 1\.0\]"):
        exit_table(head, features, Confidence(), torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize("policy", [kind() for kind in POLICIES.values()], ids=POLICIES)
def test_chunks_and_batches_change_nothing(
    policy: Policy, head: Head, features: LayerFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = exit_table(head, features, policy)
    monkeypatch.setattr(table, "MAX_LOGITS", 7 * 10)
    halves = [
        exit_table(head, LayerFeatures(features.values[:, rows], features.targets[rows]), policy)
        for rows in (slice(0, 20), slice(20, 50))
    ]
    joined = join_tables(halves)
    for column, value in vars(joined).items():
        torch.testing.assert_close(value, getattr(whole, column))
    some = torch.tensor([3, 1])
    assert torch.equal(whole.select(some).scores, whole.scores[:, some])
    assert torch.equal(whole.select(some).targets, whole.targets[some])


def test_patience_of_a_table_counts_its_predictions(head: Head, features: LayerFeatures) -> None:
    read = exit_table(head, features, Patience())
    first, second, third = read.predictions
    assert read.scores[1].tolist() == (1 + (first == second).int()).tolist()
    assert read.scores[2].tolist() == [
        3 if a == b == c else 2 if b == c else 1
        for a, b, c in zip(first.tolist(), second.tolist(), third.tolist(), strict=True)
    ]


@pytest.mark.parametrize("read", [lambda *given: exit_table(*given, Confidence()), fit_temperatures])
@pytest.mark.filterwarnings("ignore:The best temperature lies at or beyond its bounds")
def test_a_class_for_each_sample_in_whatever_whole_numbers(read: Any, head: Head, features: LayerFeatures) -> None:
    values, targets, classes = features.values, features.targets, head.num_classes
    assert targets is not None
    expected = read(head, features)
    alike: list[Any] = [targets.tolist(), targets.numpy(), targets.int(), targets.to(torch.uint8)]
    for whole in alike:
        found = read(head, LayerFeatures(values, whole))
        assert torch.equal(getattr(found, "losses", found), getattr(expected, "losses", expected))
    said = f"Expected a label in 0 … {classes - 1} for each of {len(targets)} samples"
    for wrong in (None, targets[:-1], targets.float(), targets[:, None], targets - 1, targets + 1, targets * 0 - 100):
        with pytest.raises(UserError, match=said):
            read(head, LayerFeatures(values, wrong))
    with pytest.raises(UserError, match=r"features of 3 layers, but got \(2, "):
        read(head, LayerFeatures(values[:2], targets))


def test_features_of_another_precision_than_the_heads(head: Head, features: LayerFeatures) -> None:
    table = exit_table(head, LayerFeatures(features.values.double(), features.targets), Confidence())
    assert torch.equal(table.losses, exit_table(head, features, Confidence()).losses)


def test_samples_are_needed() -> None:
    with pytest.raises(UserError, match="but got none"):
        join_tables([])


def test_a_summary_by_hand() -> None:
    sure, torn = [5.0, 0.0], [0.0, 0.0]
    logits = torch.tensor([[sure, sure, torn, torn], [torn, sure, sure, torn], [sure, sure, sure, sure]])
    summary = summarize(table_of(logits, torch.tensor([0, 1, 0, 0])), Confidence(), 0.9)
    assert summary.exits == (2, 1, 1)
    assert summary.mean_exit_layer == (1 + 1 + 2 + 3) / 4
    assert summary.layer_gain == 3 / 1.75
    assert (summary.accuracy, summary.full_accuracy, summary.samples) == (0.75, 0.75, 4)
    assert summary.loss == pytest.approx(summary.full_loss)
    assert "mean exit layer is 1.75 of 3, 1.71 times fewer layers" in summary.describe()
