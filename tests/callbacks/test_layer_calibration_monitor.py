"""The monitor on a real trainer against torchmetrics on the readouts of the same samples."""

from pathlib import Path

import pytest
import torch
from torchmetrics.functional.classification.calibration_error import _ce_compute

from callbacks import LayerAccuracyMonitor, LayerCalibrationMonitor, RunRecorder
from layersim.report.records import read_records
from tests import tiny
from tests.callbacks.test_monitors import trainer


def test_the_record_is_what_the_readouts_of_all_samples_give(tmp_path: Path) -> None:
    module, data = tiny.module(), tiny.digits(eval_batch_size=55)
    module.head.classifier.weight.data *= 200  # an untrained model is unsure of everything
    monitor = LayerCalibrationMonitor()
    run = trainer(tmp_path, [LayerAccuracyMonitor(), monitor, RunRecorder()])
    run.validate(module, data, verbose=False)
    record = read_records(tmp_path / "layers.jsonl")[-1]
    with torch.no_grad():
        readouts = [(module.eval()(batch).readout, batch["label"]) for batch in data.val_dataloader()]
    confidences, briers = (
        torch.cat([getattr(one, key) for one, _ in readouts], 1) for key in ("confidences", "briers")
    )
    right = torch.cat([one.predictions == labels for one, labels in readouts], 1)
    expected = [_ce_compute(sure.double(), hit, 15).item() for sure, hit in zip(confidences, right, strict=True)]
    assert record.values("calibration_error") == pytest.approx(expected, abs=1e-6)
    assert record.values("brier") == pytest.approx(briers.double().mean(1).tolist(), abs=1e-9)
    over = (confidences.double() - right.double()).mean(1)
    assert record.values("overconfidence") == pytest.approx(over.tolist(), abs=1e-9)
    assert over.min() > 0.3, "confidence without knowledge"
    assert run.callback_metrics["val/calibration_error"].item() == pytest.approx(expected[-1], abs=1e-6)
    told = record.quantities["reliability"]
    assert told.axes == ("layer", "confidence")
    assert told.interval is not None
    in_last = (confidences >= 14 / 15).double()
    gap = ((confidences.double() - right.double()) * in_last).sum(1) / in_last.sum(1)
    assert [row[-1] for row in told.values] == pytest.approx(gap.tolist(), abs=1e-6)
    assert (tmp_path / "figures" / "val-reliability-epoch-0000.png").is_file()
    assert record.worth == "accuracy"
    metric = monitor.make_metrics(module)["calibration"]
    metric.update(module(next(iter(data.val_dataloader()))))
    monitor.unit = "tokens"
    assert monitor.measure({"calibration": metric})["reliability"].interval is None
