"""The monitor on a real trainer against the exit rule on the readouts of the same batches."""

from functools import partial
from pathlib import Path

import pytest
import torch

from callbacks import ExitCurveMonitor, LayerAccuracyMonitor, RunRecorder
from layersim.exits import ExitCounts, exit_layer
from layersim.report.records import read_records
from tests import tiny
from tests.callbacks.test_monitors import trainer


def test_the_record_is_what_every_threshold_does_to_all_samples(tmp_path: Path) -> None:
    module, data = tiny.module(optimizer=partial(torch.optim.AdamW, lr=0.01)), tiny.digits(eval_batch_size=55)
    run = trainer(tmp_path, [LayerAccuracyMonitor(), ExitCurveMonitor(), RunRecorder()], max_epochs=2)
    run.fit(module, data)
    record = read_records(tmp_path / "layers.jsonl")[-1]

    with torch.no_grad():
        batches = [(module.eval()(batch).readout, batch["label"]) for batch in data.val_dataloader()]
    confidences, predictions = (
        torch.cat([getattr(readout, name) for readout, _ in batches], dim=1) for name in ("confidences", "predictions")
    )
    right = (predictions == torch.cat([labels for _, labels in batches])).double()
    curve = record.quantities["exit_curve"]
    thresholds, shown, accuracies = curve.ticks["threshold"], curve.ticks["mean_exit_layer"], curve.values
    assert (curve.axes, thresholds[-1]) == (("threshold",), None)
    assert 20 < len(thresholds) <= 41
    for threshold, mean, accuracy in zip(thresholds, shown, accuracies, strict=True):
        exits = exit_layer(confidences, threshold)
        assert mean == pytest.approx(exits.double().mean().item() + 1, abs=1e-12)
        assert accuracy == pytest.approx(right.gather(0, exits.unsqueeze(0)).mean().item(), abs=1e-12)
    assert len(set(shown)) > 5, "samples leave at different thresholds"
    assert len(set(accuracies)) > 5, "and it matters"
    by_layer = record.values("accuracy")
    assert (accuracies[0], accuracies[-1]) == (by_layer[0], by_layer[-1])

    every = [exit_layer(confidences, threshold) for threshold in ExitCounts(3).thresholds.tolist()]
    means = torch.stack([exits.double().mean() + 1 for exits in every])
    accuracies = torch.stack([right.gather(0, exits.unsqueeze(0)).mean() for exits in every])
    assert record.values("exit_curve_area") == pytest.approx(torch.trapezoid(accuracies, means).item() / 2)
    assert run.callback_metrics["val/exit_curve_area"].item() == pytest.approx(record.values("exit_curve_area"))
    above = int((means < 1.5).sum())
    low, high = sorted(accuracies[above - 1 : above + 1].tolist())
    assert low - 1e-6 <= run.callback_metrics["val/accuracy_at_half_layers"].item() <= high + 1e-6
    assert (tmp_path / "figures" / "val-exit_curve-epoch-0000.png").is_file()


def test_each_epoch_starts_anew(tmp_path: Path) -> None:
    callbacks = [ExitCurveMonitor(), LayerAccuracyMonitor(), RunRecorder()]
    trainer(tmp_path, callbacks, max_epochs=2, limit_train_batches=1).fit(tiny.module(), tiny.digits())
    records = read_records(tmp_path / "layers.jsonl")
    assert [record.epoch for record in records] == [0, 1]
    for record in records:
        assert record.values("exit_curve")[-1] == record.values("accuracy")[-1]
    assert records[0].quantities["exit_curve"] != records[1].quantities["exit_curve"]


def test_a_model_that_says_nothing_is_measured_too(tmp_path: Path) -> None:
    """Confidences of NaN reach no threshold: every sample goes through all layers."""
    module = tiny.module()
    torch.nn.init.constant_(module.backbone.classifier.weight, torch.nan)  # type: ignore[arg-type]
    run = trainer(tmp_path, [ExitCurveMonitor(), RunRecorder()])
    run.validate(module, tiny.digits(), verbose=False)
    (record,) = read_records(tmp_path / "layers.jsonl")
    assert record.quantities["exit_curve"].ticks["mean_exit_layer"] == [3]
    assert record.values("exit_curve_area") == record.values("exit_curve")[-1]
    assert record.values("accuracy_at_half_layers") is None
    assert "val/accuracy_at_half_layers" not in run.callback_metrics
